import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from galvanic.nn import age, analog_layers, at, calibrate_ranges, convert, describe, evaluate
from galvanic.physics import (
    BitSerial,
    BitSliced,
    Conditions,
    DifferentialPair,
    Drift,
    Gaussian,
    Mismatch,
    Quantize,
    WireResistance,
)
from galvanic.profile import Profile, load_profile
from galvanic.ranges import Calibrated, Learned
from galvanic.studies.sensitivity import sensitivity

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
RANGES = {"input_range": Calibrated(), "output_range": Calibrated()}


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def metric(net):
    """How well a model does what the digital one does: 0 at best."""
    y = net(X).detach()
    return lambda model: -(model(X) - y).square().mean().item()


def drops(rows: list[dict]) -> dict[tuple[str, str, str], float]:
    """Of the first chip."""
    return {(r["layer"], r["side"], r["effect"]): r["drop"] for r in rows if r["chip"] == rows[0]["chip"]}


QUIET, LOUD = Gaussian(std=0.001, per="chip"), Gaussian(std=0.5, per="chip")
DAC = Quantize(bits=10)


def test_the_map_finds_the_layer_and_the_effect_that_hurt(net, metric):
    quiet = Profile(name="quiet", input=(DAC,), weight=(QUIET,))
    for loud in ("0", "2"):
        model = convert(net, {loud: replace(quiet, weight=(LOUD,)), "*": quiet}, chip=0)
        rows = sensitivity(model, metric, chips=[5, 6])
        single = {r["drop"]: (r["layer"], r["side"], r["effect"]) for r in rows if r["layer"] != "all" and r["effect"] != "all"}
        assert sorted(single)[-2:] == sorted(r["drop"] for r in rows if (r["layer"], r["effect"]) == (loud, "Gaussian"))
        assert sorted(single)[-2] > 100 * sorted(single)[-3]


def test_an_ideal_profile_costs_nothing_anywhere(net, metric):
    rows = sensitivity(convert(net, load_profile("ideal"), chip=0), metric, chips=[0, 1])
    assert Counter((r["layer"], r["side"], r["effect"]) for r in rows) == dict.fromkeys([(a, "all", "all") for a in ("0", "2", "all")], 2)
    assert all(r["drop"] == 0 for r in rows)


def test_there_is_one_row_for_every_layer_effect_and_chip(net, metric):
    profile = Profile(name="p", input=(DAC,), weight=(QUIET, LOUD), output=(Gaussian(std=0.01), DAC))
    rows = sensitivity(convert(net, profile, chip=0), metric, chips=[3, 4])
    effects = [("input", "Quantize"), ("weight", "Gaussian"), ("weight", "Gaussian 2"), ("output", "Gaussian"), ("output", "Quantize")]
    expected = [(layer, *e, chip) for layer in ("0", "2", "all") for e in [*effects, ("all", "all")] for chip in (3, 4)]
    assert Counter((r["layer"], r["side"], r["effect"], r["chip"]) for r in rows) == Counter(expected)
    assert {tuple(r) for r in rows} == {("layer", "effect", "side", "chip", "noise_level", "age_s", "value", "drop")}
    assert [type(v) for v in rows[0].values()] == [str, str, str, int, float, float, float, float]


def test_each_row_is_the_metric_of_the_model_that_has_this_and_nothing_else(net, metric):
    first = Profile(name="first", weight=(LOUD, Mismatch(std=0.1)), encoding=DifferentialPair())
    model = convert(net, {"0": first, "2": replace(first, weight=(LOUD,))}, chip=0)
    alone = replace(first, weight=(LOUD,))
    by_hand = {
        ("0", "weight", "Gaussian"): {"0": alone},
        ("0", "weight", "Mismatch"): {"0": replace(first, weight=(Mismatch(std=0.1),))},
        ("0", "encoding", "DifferentialPair"): {"0": replace(first, weight=())},
        ("0", "all", "all"): {"0": first},
        ("2", "all", "all"): {"2": alone},
        ("all", "weight", "Gaussian"): {"*": alone},
        ("all", "weight", "Mismatch"): {"0": replace(first, weight=(Mismatch(std=0.1),))},
        ("all", "all", "all"): {"0": first, "2": alone},
    }
    found = {(r["layer"], r["side"], r["effect"]): r["value"] for r in sensitivity(model, metric, chips=[7])}
    for case, hardware in by_hand.items():
        assert found[case] == evaluate(convert(net, hardware, chip=0), metric, chips=[7])[0]["value"], case


@pytest.mark.parametrize("range_", [Calibrated(), Learned()], ids=["calibrated", "learned"])
def test_the_converter_ranges_are_the_models_own(net, metric, range_):
    profile = Profile(name="p", input=(DAC,), output=(DAC,), input_range=range_, output_range=range_)
    model = calibrate_ranges(convert(net, profile, chip=0), [X])
    before = drops(sensitivity(model, metric, chips=[0]))
    layers = analog_layers(model)
    layers["2"].set_range("output", layers["2"].output_range / 10)
    after = drops(sensitivity(model, metric, chips=[0]))
    changed = {case for case in before if before[case] != after[case]}
    assert changed == {("2", "output", "Quantize"), ("2", "all", "all"), ("all", "output", "Quantize"), ("all", "all", "all")}
    assert after["2", "output", "Quantize"] > 100 * before["2", "output", "Quantize"]
    assert after["all", "all", "all"] == -metric(model)


def test_an_output_effect_acts_on_the_signals_it_has_in_the_model(net, metric):
    """Whose inputs are in units of their range, converter or not: beside a fine one the coarse one is all there is."""
    coarse = Profile(name="p", input=(Quantize(bits=20),), output=(Quantize(bits=4),), **RANGES)
    found = drops(sensitivity(calibrate_ranges(convert(net, coarse, chip=0), [5 * X]), metric, chips=[0]))
    for layer in ("0", "2", "all"):
        assert found[layer, "output", "Quantize"] == pytest.approx(found[layer, "all", "all"], rel=0.02)
        assert abs(found[layer, "input", "Quantize"]) < 1e-6


def test_ranges_that_were_never_calibrated_are_refused(net, metric):
    model = convert(net, Profile(name="p", input=(DAC,), **RANGES), chip=0)
    with pytest.raises(RuntimeError, match="input range is not calibrated yet"):
        sensitivity(model, metric, chips=[0])


def test_the_level_scales_the_noise_and_leaves_the_rest(net, metric):
    model = convert(net, Profile(name="p", input=(Quantize(bits=3),), weight=(LOUD,)), chip=0)
    silent, nominal, louder = (sensitivity(model, metric, chips=[0], level=level) for level in (0.0, None, 2.0))
    assert {r["noise_level"] for r in silent} == {0.0}
    of_noise = [drops(rows)["0", "weight", "Gaussian"] for rows in (silent, nominal, louder)]
    assert of_noise[0] == pytest.approx(0, abs=1e-12)
    assert 1e-3 < of_noise[1] < of_noise[2]
    assert drops(silent)["0", "input", "Quantize"] == drops(louder)["0", "input", "Quantize"] > 0
    at(model, Conditions(noise_level=2.0))
    assert sensitivity(model, metric, chips=[0]) == louder


def test_drift_shows_in_a_model_that_has_aged(net, metric):
    model = convert(net, Profile(name="p", weight=(Drift(nu=0.05),), encoding=DifferentialPair()), chip=0)
    fresh, old = sensitivity(model, metric, chips=[0]), sensitivity(age(model, 86400.0), metric, chips=[0])
    assert drops(fresh)["0", "weight", "Drift"] == pytest.approx(0, abs=1e-9)
    assert drops(old)["0", "weight", "Drift"] > 1e-3
    assert {r["age_s"] for r in old} == {86400.0}


def test_what_is_not_ideal_in_codes_and_product_has_rows_of_its_own(net, metric):
    codes = {"encoding": BitSliced(bits=1, slices=3), "input_coding": BitSerial(bits=4), "input_range": Calibrated()}
    profile = Profile(name="p", **codes, product=WireResistance(on_ohm=1e4, row_ohm=50.0, column_ohm=50.0))
    found = drops(sensitivity(calibrate_ranges(convert(net, profile, chip=0), [X]), metric, chips=[0]))
    for case in (("encoding", "BitSliced"), ("input_coding", "BitSerial"), ("product", "WireResistance")):
        assert found["0", *case] > 1e-6
        assert found["all", *case] > found["2", *case]


def test_attention_and_recurrent_layers_are_one_layer_each_and_names_may_look_like_patterns():
    torch.manual_seed(0)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.ModuleDict({"enc[0]": nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), "e": nn.Linear(6, 6)})
            self.lstm = nn.LSTM(6, 4, batch_first=True)
            self.off = nn.Linear(4, 2)

        def forward(self, x):
            return self.off(self.lstm(self.block["e"](self.block["enc[0]"](x)))[0])

    model, x = Mixed().eval(), torch.randn(3, 5, 6)
    y = model(x).detach()
    profile = Profile(name="p", input=(DAC,), weight=(LOUD,), **RANGES)
    analog = calibrate_ranges(convert(model, {"off": None, "*": profile}, chip=0), [x])
    rows = sensitivity(analog, lambda m: -float((m(x) - y).square().mean()), chips=[0])
    block = [f"block.enc[0].{name}" for name in ("self_attn", "linear1", "linear2")]
    assert {r["layer"] for r in rows} == {*block, "block.e", "lstm", "all"}
    assert all(r["drop"] > 0 for r in rows)


def test_a_model_that_is_a_single_layer_has_a_map(metric):
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    rows = sensitivity(convert(layer, Profile(name="p", weight=(LOUD,)), chip=0), lambda m: float(m(X).sum()), chips=[0])
    assert [(r["layer"], r["effect"]) for r in rows] == [("", "Gaussian"), ("", "all"), ("all", "Gaussian"), ("all", "all")]
    assert len({r["value"] for r in rows}) == 1


def test_the_model_is_left_as_it_is(net, metric):
    model = calibrate_ranges(convert(net, load_profile("generic-4bit"), chip=3), [X]).train()
    age(model, 60.0)
    before, told, shown = copy.deepcopy(model.state_dict()), describe(model), repr(model)
    sensitivity(model, metric, chips=[0], level=2.0)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert (describe(model), repr(model)) == (told, shown)
    assert all(m.training for m in model.modules())


def test_what_has_no_map_is_refused(net, metric):
    model = convert(net, Profile(name="p", weight=(LOUD,)), chip=0)
    with pytest.raises(ValueError, match="no analog layer"):
        sensitivity(net, metric, chips=[0])
    with pytest.raises(ValueError, match="chips = "):
        sensitivity(model, metric, chips=[])
    with pytest.raises(ValueError, match="not one number"):
        sensitivity(model, lambda m: m(X), chips=[0])
    with pytest.raises(ValueError, match="noise_level = -1"):
        sensitivity(model, metric, chips=[0], level=-1.0)
