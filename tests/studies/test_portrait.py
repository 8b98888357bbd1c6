import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch

from galvanic.physics import (
    SAR,
    Activated,
    AreaMismatch,
    Compress,
    Correlated,
    Crosstalk,
    DeadLine,
    Drift,
    GainOffset,
    Gaussian,
    LogNormalMismatch,
    Mismatch,
    Nonlinearity,
    Programming,
    Quantize,
    Ramp,
    RandomTelegraph,
    ReadNoise,
    Relaxation,
    Saturate,
    Shot,
    StuckAt,
    SupplyCoefficient,
    TemperatureCoefficient,
    Thermal,
    TimeVarying,
    WriteVerify,
)
from galvanic.physics.base import Nonideality
from galvanic.profile import Profile, load_profile, profile_names
from galvanic.studies.portrait import draw, facts

EVERY = (
    Quantize(bits=3),
    Saturate(limit=0.8),
    Nonlinearity(third=-0.1),
    Gaussian(std=0.1),
    Gaussian(std=0.1, relative=True, per="snapshot"),
    Thermal(resistance_ohm=1e3, bandwidth_Hz=1e9, full_scale_A=1e-3),
    Shot(bandwidth_Hz=1e9, full_scale_A=1e-3),
    Mismatch(std=0.1),
    AreaMismatch(a=0.1),
    LogNormalMismatch(std=0.1),
    StuckAt(low_fraction=0.1),
    Programming(std=0.1),
    Drift(nu=0.05),
    ReadNoise(q=0.01),
    Compress(limit=0.8),
    SAR(bits=4, capacitor_std=0.1),
    Ramp(bits=4, inl_std=0.05),
    RandomTelegraph(amplitude=0.2),
    Relaxation(shift_slope=-0.002, std=0.01, std_slope=0.003),
    WriteVerify(pulses=4, window=0.02, pulse_std=0.05),
    GainOffset(gain_std=0.05, offset_std=0.03),
    DeadLine(fraction=0.1),
    Crosstalk(kappa=(0.1, 0.05)),
    Correlated(std=0.1, length=5.0),
    TimeVarying(times_s=(0.0, 1.0), mean=(0.0, 0.1), std=(0.1, 0.2)),
    TemperatureCoefficient(gain_per_K=-0.002),
    SupplyCoefficient(gain_per_V=0.3),
    Activated(energy_eV=0.1),
)


def panels(path) -> int:
    """How many axes an SVG of matplotlib has."""
    return sum(1 for element in ET.parse(path).iter() if (element.get("id") or "").startswith("axes_"))


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_is_drawn_with_a_panel_for_each_effect(tmp_path, name):
    profile = load_profile(name)
    assert draw(profile, tmp_path / "x.svg") == tmp_path / "x.svg"
    effects = len(profile.input) + len(profile.weight) + len(profile.output)
    columns = min(3, max(1, effects))
    assert panels(tmp_path / "x.svg") == columns * -(-max(1, effects) // columns)
    text = (tmp_path / "x.svg").read_text()
    assert name in text
    assert "nan" not in text.lower().replace("nanda", "")


def test_the_list_of_effects_below_is_whole():
    def concrete(cls: type) -> set[type]:
        found = set().union(*map(concrete, cls.__subclasses__())) if cls.__subclasses__() else set()
        return found | ({cls} if not cls.__abstractmethods__ and cls.__module__.startswith("galvanic.") else set())

    assert concrete(Nonideality) == {type(effect) for effect in EVERY}


@pytest.mark.parametrize("side", ["input", "weight", "output"])
def test_every_effect_is_drawn_on_every_side(tmp_path, side):
    effects = [replace(e, per="snapshot") if side == "weight" and e.per == "read" else e for e in EVERY]
    draw(Profile(name="p", **{side: tuple(effects)}), tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    assert [type(e).__name__ for e in effects if f"{side}: {type(e).__name__}" not in text] == []


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_the_format_is_that_of_the_name(tmp_path, suffix, start):
    assert draw(load_profile("ideal"), tmp_path / f"x{suffix}").read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["x.txt", "x", "x.svg.bak", ".svg"])
def test_another_format_is_refused_and_nothing_written(tmp_path, name):
    with pytest.raises(ValueError, match=r"a drawing ends in \.svg, \.png, \.pdf"):
        draw(load_profile("ideal"), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["costs $5", "$\\foo$", "$x$", "$x$ and $", "a_b^c", "50 %", "\\frac", "{}"])
def test_names_and_summaries_come_out_literally(tmp_path, text):
    draw(Profile(name="n", summary=text), tmp_path / "x.svg")
    assert text in (tmp_path / "x.svg").read_text()


# ------------------------------------------------------------------------------------------------------------------- facts


def test_every_effect_is_told_with_its_side_source_and_numbers():
    rows = facts(load_profile("pcm"))
    assert [(side, effect) for side, effect, _, _ in rows] == [
        ("tile", ""),
        ("input", "Quantize"),
        ("weight", "Programming"),
        ("weight", "Drift"),
        ("weight", "ReadNoise"),
        ("output", "Gaussian"),
        ("output", "Quantize"),
    ]
    assert all(source for _, effect, source, _ in rows if effect)
    assert ("rows", "512") in rows[0][3]


@pytest.mark.parametrize("name", profile_names())
def test_every_number_of_a_shipped_profile_has_a_source(name):
    assert all(source for _, effect, source, _ in facts(load_profile(name)) if effect)


def test_units_are_those_of_the_name_and_numbers_of_full_scale_have_none():
    rows = facts(Profile(name="p", output=(Thermal(resistance_ohm=1e3, bandwidth_Hz=2e9, full_scale_A=1e-3), Gaussian(std=0.1))))
    thermal, gaussian = dict(rows[1][3]), dict(rows[2][3])
    assert thermal == {"drawn per": "read", "resistance_ohm": "1000.0 ohm", "bandwidth_Hz": "2000000000.0 Hz", "full_scale_A": "0.001 A"}
    assert gaussian == {"drawn per": "read", "std": "0.1"}


def test_a_coefficient_is_told_per_unit_and_its_reference_in_the_unit():
    rows = facts(Profile(name="p", output=(TemperatureCoefficient(gain_per_K=0.002, reference_K=310.0),)))
    assert dict(rows[1][3]) == {"gain_per_K": "0.002 1/K", "offset_per_K": "0.0 1/K", "reference_K": "310.0 K"}


def test_a_sequence_correlated_in_time_is_drawn(tmp_path):
    draw(Profile(name="p", input=(Correlated(std=0.1, length=5.0, along="time"),)), tmp_path / "x.svg")
    assert "vector" in (tmp_path / "x.svg").read_text()


def test_learned_parameters_are_told_and_drawn(tmp_path):
    profile = Profile(name="p", output=(Gaussian(std=torch.tensor(0.25, requires_grad=True)),))
    assert "0.25" in dict(facts(profile)[1][3])["std"]
    draw(profile, tmp_path / "x.svg")
