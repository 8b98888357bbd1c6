import json
import re
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import galvanic.physics as physics
from galvanic.physics import DifferentialPair, Drift, Gaussian, LogLaw, Nonideality, Nonlinearity, Piecewise, Polynomial, Quantize
from galvanic.profile import Profile, load_profile, parse_profile, profile_from_dict, profile_names, profile_to_dict, to_toml
from galvanic.ranges import Calibrated, Fixed, Learned, MinimumError

SHIPPED = [
    "bss2",
    "flash",
    "fpaa",
    "generic-4bit",
    "hwa",
    "ideal",
    "integer-8bit",
    "mythic",
    "northpole",
    "pcm",
    "pcm-hermes",
    "reram",
    "reram-milo",
    "reram-wan",
    "sonos",
]
every_profile = pytest.mark.parametrize("profile", [load_profile(name) for name in SHIPPED], ids=SHIPPED)


def effects(profile: Profile) -> list[Nonideality]:
    return [*profile.input, *profile.weight, *profile.output]


# ------------------------------------------------------------------------------------------------------------------- what is right


def test_these_are_the_profiles_that_are_shipped():
    assert profile_names() == sorted(SHIPPED)


@every_profile
def test_a_shipped_profile_carries_its_name_a_summary_and_a_source_for_every_effect(profile):
    assert profile.name in SHIPPED
    assert re.fullmatch(r"[A-Z].*\.", profile.summary)
    assert all(len(e.source) > 10 for e in effects(profile))


def test_the_ideal_profile_holds_nothing():
    assert load_profile("ideal") == Profile(name="ideal", summary=load_profile("ideal").summary)


@every_profile
def test_a_profile_survives_toml_and_dictionaries_and_json_with_its_sources(profile):
    for twin in (
        parse_profile(to_toml(profile)),
        profile_from_dict(profile_to_dict(profile)),
        profile_from_dict(json.loads(json.dumps(profile_to_dict(profile)))),
    ):
        assert twin == profile
        assert hash(twin) == hash(profile)
        assert [e.source for e in effects(twin)] == [e.source for e in effects(profile)]
        assert to_toml(twin) == to_toml(profile)


@pytest.mark.parametrize("effect", ["std = 1", 'kind = "zzzzzz"'])
def test_a_message_names_some_of_many_effects_and_stays_short(effect):
    with pytest.raises(ValueError, match=r"(one of|known:) Activated, .* \.\.\.") as caught:
        parse_profile(f'name = "a"\n[[output]]\n{effect}')
    assert len(str(caught.value)) < 340


def test_a_profile_with_everything_unusual_survives_toml():
    profile = Profile(
        name='a "quoted" \\ name\nof two lines, é, 漢, 😀, \x7f, \x01',
        summary="",
        input=(Quantize(step=2.0**-8, error_std=1e-7), Nonlinearity(second=-1e-300, third=1e22)),
        weight=(
            Quantize(bits=3, signed=False, full_scale=0.1 + 0.2, stochastic=True, per="write"),
            Drift(nu=Piecewise(threshold=1, below=LogLaw(slope=-1, intercept=0, low=-1, high=1), above=Polynomial(coefficients=(1, 2.5)))),
            Gaussian(std=0.1, relative=True, per="read"),
        ),
        output=(Gaussian(std=0.1, per="snapshot"), Gaussian(std=0.1, per="snapshot")),
        encoding=DifferentialPair(g_min=0.1),
        rows=3,
        columns=10**6,
        input_range=MinimumError(),
        output_range=Fixed(value=12),
        weight_scale="layer",
    )
    assert parse_profile(to_toml(profile)) == profile


def test_a_fitted_tensor_is_written_as_its_number():
    profile = Profile(name="a", output=(Gaussian(std=torch.tensor(0.25, requires_grad=True)), Nonlinearity(third=torch.tensor(0.5))))
    assert parse_profile(to_toml(profile)) == profile == Profile(name="a", output=(Gaussian(std=0.25), Nonlinearity(third=0.5)))


def test_equality_ignores_the_source_and_nothing_else():
    one = Profile(name="a", weight=(Gaussian(std=0.1, per="chip", source="measured"),))
    assert one == replace(one, weight=(Gaussian(std=0.1, per="chip", source="assumed"),))
    assert one != replace(one, name="b")
    assert one != replace(one, summary="b")
    assert one != replace(one, weight=(Gaussian(std=0.1, per="write"),))
    assert one != replace(one, weight=(), output=one.weight)
    assert one != replace(one, input_range=Calibrated())
    assert replace(one, input_range=Calibrated()) != replace(one, input_range=Learned())
    assert one != replace(one, rows=1)


def test_a_file_is_read_whatever_the_path_looks_like(tmp_path):
    path = tmp_path / "my chip.é.toml"
    path.write_text('name = "mine"\nsummary = "5 µS"', encoding="utf-8")
    assert load_profile(path) == load_profile(str(path)) == Profile(name="mine", summary="5 µS")


def test_an_effect_of_a_user_is_known_by_its_name():
    @dataclass(frozen=True, kw_only=True)
    class Dimming(Nonideality):
        share: physics.Scalar

        def apply(self, x, z, at):
            return x * (1 - self.share)

    assert parse_profile('name = "a"\n[[output]]\nkind = "Dimming"\nshare = 0.1').output == (Dimming(share=0.1),)


# ------------------------------------------------------------------------------------------------------------------- what is wrong


def refusal(toml: str | bytes, tmp_path) -> str:
    """The one line with which a file is refused; it begins with the file."""
    path = tmp_path / "chip.toml"
    path.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_profile(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert len(message) < 400 + len(str(path))
    return message.removeprefix(f"{path}: ")


DRIFT = 'name = "a"\n[[weight]]\nkind = "Gaussian"\nstd = 0.1\nper = "chip"\n[[weight]]\nkind = "Drift"\nnu = 0.1\n'
ADC = 'name = "a"\n[[output]]\nkind = "Quantize"\n'

WRONG = {
    # what: (TOML, what the line says, word for word)
    "key": (DRIFT + "nu_sdt = 0.1", "[[weight]] 2 (Drift): unknown key 'nu_sdt'; did you mean 'nu_std'?"),
    "key that is like none": (DRIFT + "zzz = 1", "[[weight]] 2 (Drift): unknown key 'zzz'; known: "),
    "key of the profile": ('name = "a"\nrow = 3', "unknown key 'row'; did you mean 'rows'?"),
    "key with a table": (DRIFT + "[weight.nux]\nlow = 1", "[[weight]] 2 (Drift): unknown key 'nux'; did you mean 'nu'?"),
    "key of two lines": (DRIFT + '"a\\nb" = {}', "unknown key 'a\\nb'"),
    "key that Python has": (DRIFT + "after_write = false", "unknown key 'after_write'"),
    "unit": (DRIFT + "t0_ms = 1", "[[weight]] 2 (Drift): unit of 't0_ms' not accepted; give t0_s in seconds"),
    "unit left out": (DRIFT + "t0 = 1", "[[weight]] 2 (Drift): unit of 't0' not accepted; give t0_s in seconds"),
    "unit in capitals": (DRIFT + "t0_S = 1", "give t0_s in seconds"),
    "unit of a frequency": ('name = "a"\n[[output]]\nkind = "Shot"\nbandwidth_MHz = 1', "give bandwidth_Hz in hertz"),
    "NaN": (DRIFT + "nu_std = nan", "[[weight]] 2 (Drift): Drift.nu_std = nan: input should be a finite number"),
    "infinity": (DRIFT + "nu_std = inf", "Drift.nu_std = inf: input should be a finite number"),
    "number beyond all floats": (DRIFT + "nu_std = 1e999", "Drift.nu_std = inf: input should be a finite number"),
    "integer beyond all floats": (DRIFT + f"nu_std = {10**400}", "Drift.nu_std = 1000"),
    "integer of 5,000 digits": (DRIFT + "nu_std = " + "1" * 5000, "5000 digits"),
    "negative": (DRIFT + "nu_std = -0.1", "Drift.nu_std = -0.1: input should be greater than or equal to 0"),
    "time of zero": (DRIFT + "t0_s = 0", "Drift.t0_s = 0: input should be greater than 0"),
    "bits of zero": (ADC + "bits = 0", "[[output]] 1 (Quantize): Quantize.bits = 0: input should be greater than or equal to 1"),
    "bits of a fraction": (ADC + "bits = 4.5", "Quantize.bits = 4.5: input should be a valid integer"),
    "one signed bit": (
        ADC + "bits = 1",
        "Quantize.bits = 1: a signed converter with a level at zero needs 2 bits or more; or signed=False",
    ),
    "text for a number": (DRIFT + 'nu_std = "0.1"', "Drift.nu_std = '0.1': input should be a valid number"),
    "list for a number": (DRIFT + "nu_std = [0.1]", "Drift.nu_std = (0.1,): input should be a valid number"),
    "date for a number": (DRIFT + "nu_std = 2024-01-01", "Drift.nu_std = datetime.date(2024, 1, 1): input should be a valid number"),
    "truth for an integer": (ADC + "bits = true", "Quantize.bits = True: input should be a valid integer"),
    "truth for a number": (DRIFT + "nu_std = true", "Drift.nu_std = True: input should be a valid number"),
    "integer for a truth": (ADC + "bits = 4\nsigned = 1", "Quantize.signed = 1: input should be a valid boolean"),
    "number for a name": ("name = 3", "Profile.name = 3: input should be a valid string"),
    "rows of zero": ('name = "a"\nrows = 0', "Profile.rows = 0: input should be greater than or equal to 1"),
    "truth for rows": ('name = "a"\nrows = true', "Profile.rows = True: input should be a valid integer"),
    "word out of a few": ('name = "a"\nweight_scale = "row"', "Profile.weight_scale = 'row': input should be 'column' or 'layer'"),
    "clock": (DRIFT + 'per = "year"', "Drift.per = 'year': input should be 'chip', 'write', 'snapshot' or 'read'"),
    "key twice": (DRIFT + "nu = 0.1", "Cannot overwrite a value"),
    "table twice": (
        'name = "a"\n[encoding]\nkind = "Direct"\n[encoding]\nkind = "Direct"',
        "Cannot declare ('encoding',) twice (at line 4",
    ),
    "effect": ('name = "a"\n[[output]]\nkind = "Gausian"\nstd = 1', "[[output]] 1: unknown kind 'Gausian'; did you mean 'Gaussian'?"),
    "abstract effect": ('name = "a"\n[[output]]\nkind = "Additive"', "[[output]] 1: unknown kind 'Additive'"),
    "effect that is a curve": ('name = "a"\n[[output]]\nkind = "Polynomial"\ncoefficients = [1.0]', "unknown kind 'Polynomial'"),
    "curve": (
        'name = "a"\n[[weight]]\nkind = "Drift"\nnu = { kind = "LogLow" }',
        "[[weight]] 1 (Drift).nu: unknown kind 'LogLow'; did you mean 'LogLaw'?",
    ),
    "key of a curve": (
        'name = "a"\n[[weight]]\nkind = "Drift"\nnu = { kind = "Polynomial", coefficient = [1.0] }',
        "[[weight]] 1 (Drift).nu (Polynomial): unknown key 'coefficient'; did you mean 'coefficients'?",
    ),
    "number in a curve": (
        'name = "a"\n[[weight]]\nkind = "Drift"\nnu = { kind = "Polynomial", coefficients = [1.0, nan] }',
        "[[weight]] 1 (Drift).nu (Polynomial): Polynomial.coefficients = (1.0, nan): input should be a finite number",
    ),
    "curve where none can be": (DRIFT + 't0_s = { kind = "Polynomial", coefficients = [1.0] }', "Drift.t0_s = Polynomial("),
    "encoding": (
        'name = "a"\nencoding = { kind = "DifferentPair" }',
        "encoding: unknown kind 'DifferentPair'; did you mean 'DifferentialPair'?",
    ),
    "range": ('name = "a"\ninput_range = { kind = "Fix", value = 1.0 }', "input_range: unknown kind 'Fix'; did you mean 'Fixed'?"),
    "range of zero": (
        'name = "a"\noutput_range = { kind = "Fixed", value = 0 }',
        "output_range (Fixed): Fixed.value = 0: input should be greater than 0",
    ),
    "no kind": ('name = "a"\n[[output]]\nstd = 1', "[[output]] 1: a table with a kind, one of "),
    "kind that is no text": ('name = "a"\n[[output]]\nkind = 1', "[[output]] 1: a table with a kind, one of "),
    "no required field": ('name = "a"\n[[weight]]\nkind = "Drift"', "[[weight]] 1 (Drift): nu is missing"),
    "no name": ("rows = 3", "name is missing"),
    "nothing": ("", "name is missing"),
    "one table for a list": ('name = "a"\n[output]\nkind = "Saturate"', "output is a list of tables, [[output]]"),
    "number for a list": ('name = "a"\noutput = 3', "output is a list of tables, [[output]]"),
    "list for a table": ('name = "a"\nencoding = [{ kind = "Direct" }]', "encoding: a table with a kind, one of "),
    "text for a table": (
        'name = "a"\nencoding = "Direct"',
        "encoding: a table with a kind, one of BitSliced, DifferentialPair, Direct, OffsetColumn, Parallel; got 'Direct'",
    ),
    "numbers in a list of tables": ('name = "a"\noutput = [1]', "[[output]] 1: a table with a kind, one of "),
    "read noise of weights that is not additive": (
        'name = "a"\n[[weight]]\nkind = "LogNormalMismatch"\nstd = 0.1\nper = "read"',
        "weight effect LogNormalMismatch has per='read', which only additive Gaussian noise can have; use per='snapshot'",
    ),
    "rounding of weights at every read": (
        'name = "a"\n[[weight]]\nkind = "Quantize"\nbits = 4\nstochastic = true',
        "weight effect Quantize has per='read'",
    ),
    "more faults than devices": (
        'name = "a"\n[[weight]]\nkind = "StuckAt"\nlow_fraction = 0.7\nhigh_fraction = 0.7',
        "= 1.4, which is more than 1",
    ),
    "text that is not UTF-8": (b'name = "\xff"', "not UTF-8 text (invalid start byte at byte 8)"),
    "binary file": (bytes(range(256)), "not UTF-8 text"),
    "syntax": ("name = ", "Invalid value (at "),
    "lists 100,000 deep": ('name = "a"\nrows = ' + "[" * 100_000, "nested too deeply"),
    "tables 100,000 deep": ('name = "a"\nencoding = ' + "{a=" * 100_000, "nested too deeply"),
    "keys 5,000 deep": (
        'name = "a"\nencoding' + ".a" * 5000 + " = 1",
        "encoding: a table with a kind, one of BitSliced, DifferentialPair, Direct, OffsetColumn, Parallel; got {'a': {'a'",
    ),
    "lists 250 deep": (DRIFT + "nu_std = " + "[" * 250 + "]" * 250, "Drift.nu_std = "),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_thing_is_refused_in_one_line_with_file_table_key_and_what_would_do(what, tmp_path):
    toml, says = WRONG[what]
    assert says in refusal(toml, tmp_path)


def test_curves_nested_too_deeply_are_refused_from_json_too():
    curve = {"kind": "Polynomial", "coefficients": [0.1]}
    for _ in range(2000):
        curve = {"kind": "Piecewise", "threshold": 0.1, "below": curve, "above": {"kind": "Polynomial", "coefficients": [0.1]}}
    with pytest.raises(ValueError, match=r"^run: nested too deeply$"):
        profile_from_dict({"name": "a", "weight": [{"kind": "Drift", "nu": curve}]}, where="run")


def test_an_unknown_profile_is_refused_with_the_nearest_name_or_all_of_them():
    with pytest.raises(ValueError, match=r"^unknown profile 'pcm-herms'; did you mean 'pcm-hermes'\?"):
        load_profile("pcm-herms")
    with pytest.raises(ValueError, match=r"^unknown profile 'zzz'; known: bss2, flash, fpaa, .*a file that ends in \.toml"):
        load_profile("zzz")


@pytest.mark.parametrize("name", ["nowhere.toml", "", "a\0b.toml"])
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        load_profile(tmp_path / name if name else tmp_path)
    assert str(tmp_path / name) in str(caught.value) or repr(str(tmp_path)) in str(caught.value)


# ------------------------------------------------------------------------------------------------------------------- what is random

TEXTS = [to_toml(load_profile(name)).encode() for name in SHIPPED]
WORDS = b"""[[weight]] [weight] [[output]] [weight.nu] kind "Gaussian" "Piecewise" std per bits nu name={}
nan inf -1 1e999 0 true 2024-01-01 { } [ ] " ' \'\'\' = , . # _ \\ "\\n"
{kind="Polynomial",coefficients=[[1],{}]} {kind="Polynomial",coefficients=[]}"""
PIECES = [*WORDS.split(), b"\n", b"\r", b"\0", b"\xff", "é".encode(), b"0x" + b"f" * 5000]


@st.composite
def mutated(draw) -> bytes:
    """A shipped profile with a few parts cut out, doubled or replaced."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 40)))
        text = text[:start] + draw(st.sampled_from(PIECES) | st.binary(max_size=8) | st.just(text[start:end] * 2)) + text[end:]
    return text


@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=mutated())
@example(data=b"\xef\xbb\xbf" + TEXTS[0])
@example(data=TEXTS[SHIPPED.index("pcm")].replace(b"0.0155", b"0x" + b"f" * 5000))
def test_whatever_a_file_holds_it_is_a_profile_or_one_line(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(data)
    try:
        came: Profile | ValueError = load_profile(path)
    except ValueError as error:
        came = error
    if isinstance(came, Profile):
        assert parse_profile(to_toml(came)) == came
    else:
        assert type(came) is ValueError
        assert str(came).startswith(f"{path}: ")
        assert len(str(came).splitlines()) == 1


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(name=st.text(), std=st.floats(0, allow_infinity=False), low=st.floats(allow_nan=False, allow_infinity=False), rows=st.integers(1))
def test_every_text_and_number_survives_toml(name, std, low, rows):
    if any("\ud800" <= c <= "\udfff" for c in name):
        return  # half a character, which no file can hold
    profile = Profile(name=name, rows=rows, output=(Gaussian(std=std), Nonlinearity(second=low)))
    assert parse_profile(to_toml(profile)) == profile
