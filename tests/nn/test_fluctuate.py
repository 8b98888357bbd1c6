"""A noise level for each example: what is drawn at reads follows it, exactly as under that level, and nothing else does."""

import copy
import itertools
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from galvanic.nn import analog_layers, at, calibrate_ranges, convert, fluctuate, program, reads, unfused
from galvanic.physics import (
    SAR,
    Conditions,
    Correlated,
    DeadLine,
    DifferentialPair,
    GainOffset,
    Gaussian,
    Mismatch,
    Programming,
    Quantize,
    Ramp,
    RandomTelegraph,
    ReadNoise,
    Shot,
    StuckAt,
    Thermal,
    TimeVarying,
)
from galvanic.profile import Profile, load_profile
from galvanic.ranges import Calibrated, Fixed

LEVELS = torch.tensor([0.0, 1.0, 0.5, 2.0, 0.0, 0.25])
LAYERS = {  # a tile has 16 rows
    "linear": (lambda: nn.Linear(12, 5), (6, 12)),
    "linear, 3 tiles, sequences": (lambda: nn.Linear(40, 5), (6, 3, 40)),
    "conv, 3 tiles": (lambda: nn.Conv2d(6, 4, (2, 3), padding=1), (6, 6, 5, 4)),
    "conv in groups": (lambda: nn.Conv1d(4, 4, 3, groups=2), (6, 4, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 2, 2, stride=2), (6, 3, 3, 2)),
}
CONVERTER = (Gaussian(std=0.05), Quantize(bits=6))


def profile(**parts):
    return Profile(**{"name": "p", "rows": 16, "input_range": Fixed(value=3.0), "output_range": Fixed(value=2.0)} | parts)


HARDWARE = {  # with nothing random but at reads
    "noise at the output": profile(output=(Gaussian(std=0.05),)),
    "a converter at the output": profile(input=(Quantize(bits=5),), output=CONVERTER),
    "alike cells": profile(weight=(Gaussian(std=0.05, per="read"),)),
    "cells, a pair each": profile(weight=(Gaussian(std=0.05, per="read", relative=True),), encoding=DifferentialPair(), output=CONVERTER),
    "noisy inputs": profile(input=(Gaussian(std=0.05), Quantize(bits=5)), output=(Quantize(bits=8),)),
    "telegraph noise of inputs": profile(input=(RandomTelegraph(amplitude=0.2, per="read"),), output=CONVERTER),
}
EFFECTS = {
    "relative": Gaussian(std=0.1, relative=True),
    "thermal": Thermal(resistance_ohm=1e3, bandwidth_Hz=1e9, full_scale_A=1e-6),
    "shot": Shot(bandwidth_Hz=1e9, full_scale_A=1e-7),
    "in time": TimeVarying(times_s=(0.0, 1.0), mean=(0.01, 0.0), std=(0.1, 0.2)),
    "along rows": Correlated(std=0.1, length=2.0),
    "along time": Correlated(std=0.1, length=2.0, along="time"),
    "telegraph": RandomTelegraph(amplitude=0.3, per="read"),
    "amplifier": GainOffset(gain=0.1, gain_std=0.1, offset_std=0.05, per="read"),
    "shared amplifier": GainOffset(gain_std=0.1, offset_std=0.05, shared=True, per="read"),
    "mismatch": Mismatch(std=0.1, per="read"),
    "dead lines": DeadLine(fraction=0.2, per="read"),
    "stuck": StuckAt(low_fraction=0.1, high_fraction=0.1, per="read"),
    "quantiser": Quantize(bits=6, error_std=0.02, per="read"),
    "successive approximation": SAR(bits=5, offset_std=0.05, capacitor_std=0.2, per="read"),
    "ramp": Ramp(bits=5, offset_std=0.05, inl_std=0.1, per="read"),
}


def on_chip(layer, hardware, dtype=torch.float64):
    torch.manual_seed(1)
    make, shape = LAYERS[layer]
    x = torch.randn(shape, dtype=dtype)
    return convert(make().to(dtype), hardware, chip=3), x


def answer(model, x, seed=5):
    torch.manual_seed(seed)
    return model(x).detach()


def under(level):
    return Conditions(noise_level=float(level))


# ------------------------------------------------------------------------------------------------------------------- the law


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "one by one"])
@pytest.mark.parametrize("name", HARDWARE)
@pytest.mark.parametrize("layer", LAYERS)
def test_an_example_reads_as_it_would_on_the_whole_chip_under_its_level(layer, name, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr("galvanic.nn.fused.possible", lambda x: False)
    model, x = on_chip(layer, HARDWARE[name])
    found = answer(fluctuate(model, LEVELS), x)
    fluctuate(model, None)
    for i, level in enumerate(LEVELS):
        torch.testing.assert_close(found[i], answer(at(model, under(level)), x)[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("layer", ["linear", "linear, 3 tiles, sequences", "conv, 3 tiles"])
def test_the_same_holds_for_every_effect_that_is_drawn_at_reads(layer, name, side):
    model, x = on_chip(layer, profile(**{side: (EFFECTS[name],)}))
    found = answer(fluctuate(model, LEVELS), x)
    fluctuate(model, None)
    for i, level in enumerate(LEVELS):
        torch.testing.assert_close(found[i], answer(at(model, under(level)), x)[i], rtol=1e-12, atol=1e-12)
    assert not torch.equal(found[3], answer(at(model, under(0)), x)[3])  # level 2 is seen


@pytest.mark.parametrize("name", HARDWARE)
@pytest.mark.parametrize("layer", LAYERS)
def test_level_zero_leaves_exactly_these_examples_without_noise(layer, name):
    for dtype, plain in itertools.product((torch.float32, torch.float64), (False, True)):
        model, x = on_chip(layer, HARDWARE[name], dtype)
        with unfused() if plain else nullcontext():
            with reads(model, "off"):
                quiet = model(x)
            found = answer(fluctuate(model, 5 * LEVELS), x)
        assert [torch.equal(a, b) for a, b in zip(found, quiet, strict=True)] == [not level for level in LEVELS.tolist()]


@pytest.mark.parametrize("plain", [False, True], ids=["fused", "one by one"])
@pytest.mark.parametrize("layer", ["linear, 3 tiles, sequences", "conv, 3 tiles"])
@pytest.mark.parametrize(
    "hardware",
    [profile(output=(Gaussian(std=0.01), Quantize(bits=16)), output_range=Fixed(value=8.0)), HARDWARE["alike cells"]],
    ids=["a converter at the output", "alike cells"],
)
def test_the_variance_of_an_example_is_proportional_to_its_level_squared(layer, hardware, plain):
    """The relative error of a variance from n normal numbers has a standard deviation of sqrt(2 / n)."""
    model, x = on_chip(layer, hardware)
    levels, n = torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0, 4.0]), 1500
    fluctuate(model, levels.repeat(n))
    with unfused() if plain else nullcontext(), torch.no_grad():
        y = answer(model, x[:1].expand(6 * n, *x.shape[1:]))  # one and the same input
    variance = y.unflatten(0, (n, 6)).var(0).flatten(1) / levels[:, None] ** 2  # (examples, outputs)
    relative = variance / variance.mean(0)
    assert float((relative - 1).abs().max()) < 5.5 * (2 / n) ** 0.5
    assert float((relative.mean(1) - 1).abs().max()) < 5 * (2 / n / relative.shape[1]) ** 0.5


# ------------------------------------------------------------------------------------------------------------------- what stays


@pytest.mark.parametrize("mode", ["fresh", "frozen", "off"])
@pytest.mark.parametrize("name", [*HARDWARE, "generic-4bit", "pcm"])
@pytest.mark.parametrize("layer", LAYERS)
def test_levels_of_one_change_no_bit(layer, name, mode):
    for dtype, plain in itertools.product((torch.float32, torch.float64), (False, True)):
        hardware = HARDWARE[name] if name in HARDWARE else load_profile(name)
        model, x = on_chip(layer, hardware, dtype)
        calibrate_ranges(model, [x])
        with unfused() if plain else nullcontext(), reads(model, mode):
            before = answer(model, x)
            assert torch.equal(answer(fluctuate(model, torch.ones(6)), x), before)
            assert torch.equal(answer(fluctuate(model, None), x), before)


def test_frozen_reads_keep_the_draw_and_let_the_level_change():
    model, x = on_chip("conv, 3 tiles", HARDWARE["noise at the output"])
    with reads(model, "off"):
        quiet = model(x)
    with reads(model, "frozen"):
        once = fluctuate(model, torch.ones(6))(x) - quiet
        assert torch.equal(model(x) - quiet, once)
        torch.testing.assert_close(fluctuate(model, LEVELS)(x) - quiet, once * LEVELS.view(-1, 1, 1, 1))


STILL = {  # with nothing random at reads
    "converters": profile(input=(Quantize(bits=4),), output=(Quantize(bits=4),)),
    "noise per chip": profile(input=(Mismatch(std=0.1),), weight=(Gaussian(std=0.1, per="chip"),), output=(GainOffset(offset_std=0.1),)),
    "noise per write and snapshot": profile(
        weight=(Programming(std=0.05), ReadNoise(q=0.02)), encoding=DifferentialPair(), output=(Gaussian(std=0.1, per="snapshot"),)
    ),
}


@pytest.mark.parametrize("name", STILL)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_not_drawn_at_reads_does_not_change(layer, name):
    model, x = on_chip(layer, STILL[name])
    before = model(x)
    assert torch.equal(fluctuate(model, LEVELS * 10)(x), before)


def test_chip_noise_keeps_the_level_of_the_conditions_and_read_noise_has_the_product():
    model, x = on_chip("linear", profile(weight=(Gaussian(std=0.1, per="chip"),), output=(Gaussian(std=0.1),)))
    at(model, under(0.5))
    with reads(model, "off"):
        still = model(x).detach()
    noise = answer(model, x) - still
    torch.testing.assert_close(answer(fluctuate(model, LEVELS), x) - still, noise * LEVELS[:, None])


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_those_of_the_effects_one_by_one(layer, monkeypatch):
    def gradients(model, x):
        x = x.clone().requires_grad_()
        torch.manual_seed(5)
        return torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])

    model, x = on_chip(layer, HARDWARE["a converter at the output"])
    found = gradients(fluctuate(model, LEVELS), x)
    monkeypatch.setattr("galvanic.nn.fused.possible", lambda x: False)
    for a, b in zip(found, gradients(model, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_precision_of_the_signal_stays_whatever_that_of_the_levels(dtype):
    for name in HARDWARE:
        model, x = on_chip("linear", HARDWARE[name], dtype)
        for levels in (LEVELS.double(), LEVELS.half(), torch.arange(6)):
            y = fluctuate(model, levels)(x)
            assert y.dtype == dtype
            assert bool(y.isfinite().all())


# ------------------------------------------------------------------------------------------------------------------- models


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


X = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_levels_stay_through_writes_and_conditions_and_end_with_none():
    model = calibrate_ranges(convert(network(), load_profile("generic-4bit"), chip=0), [X])
    before = answer(model, X)
    fluctuate(model, LEVELS)
    program(at(model, Conditions(temperature_K=310.0)), 0)
    assert all(layer.levels is not None for layer in analog_layers(model).values())
    assert torch.equal(answer(fluctuate(at(model, Conditions()), None), X), before)
    assert all(layer.levels is None for layer in analog_layers(model).values())


def test_a_copy_has_the_levels_and_is_on_its_own_and_a_conversion_begins_without():
    model = calibrate_ranges(convert(network(), load_profile("generic-4bit"), chip=0), [X])
    fluctuate(model, LEVELS)
    twin = copy.deepcopy(model)
    assert torch.equal(answer(twin, X), answer(model, X))
    fluctuate(twin, None)
    assert all(layer.levels is not None for layer in analog_layers(model).values())
    again = convert(model, load_profile("generic-4bit"), chip=0)
    assert all(layer.levels is None for layer in analog_layers(again).values())
    assert not any("levels" in name for name in model.state_dict())


def test_levels_get_no_gradient_on_any_path():
    model, x = on_chip("linear", HARDWARE["a converter at the output"])
    levels = LEVELS.clone().requires_grad_()
    for plain in (False, True):
        with unfused() if plain else nullcontext():
            fluctuate(model, levels)(x).sum().backward()
    assert levels.grad is None


def test_a_compiled_model_follows_the_levels_as_the_eager_one():
    model, x = convert(network(), profile(weight=(Gaussian(std=0.05, per="read"),), output=(Gaussian(std=0.1),)), chip=0), X
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for levels in (None, LEVELS, torch.zeros(6), torch.ones(6), LEVELS.flip(0), None):
        fluctuate(model, levels)
        with torch.no_grad():
            torch.testing.assert_close(answer(compiled, x), answer(model, x), rtol=1e-5, atol=1e-6)


def test_attention_takes_a_level_for_each_example_whatever_its_layout():
    for batch_first in (True, False):
        torch.manual_seed(0)
        model = convert(nn.MultiheadAttention(8, 2, batch_first=batch_first), profile(output=(Gaussian(std=0.05),)), chip=0)
        x = torch.randn((6, 4, 8) if batch_first else (4, 6, 8))
        with reads(model, "off"):
            quiet = model(x, x, x)[0]
        found = fluctuate(model, LEVELS)(x, x, x)[0]
        same = (found == quiet).all(-1).all(1 if batch_first else 0)
        assert same.tolist() == [not level for level in LEVELS.tolist()]


# ------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", HARDWARE)
@pytest.mark.parametrize("layer", LAYERS)
def test_another_number_of_levels_than_of_examples_is_refused_by_layer_and_numbers(layer, name):
    model, x = on_chip(layer, HARDWARE[name])
    for n in (1, 5, 7):
        fluctuate(model, torch.ones(n))
        with pytest.raises(
            ValueError, match=rf"^the layer: noise levels of {n} examples meet a signal of shape \(6, .*first dim"
        ) as caught:
            model(x)
        assert "\n" not in str(caught.value)


def test_a_recurrent_layer_multiplies_all_times_at_once_and_refuses():
    model = convert(nn.Sequential(nn.LSTM(4, 3)), profile(output=(Gaussian(std=0.05),)), chip=0)
    fluctuate(model, torch.ones(6))
    with pytest.raises(ValueError, match=r"^0\.ih_l0: noise levels of 6 examples meet a signal of shape \(30, 12\)"):
        model(torch.randn(5, 6, 4))


@pytest.mark.parametrize(
    "wrong",
    [
        torch.tensor(1.0),
        torch.ones(3, 1),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([float("inf")]),
        torch.tensor([1.0, -0.1]),
        torch.full((10_000,), -1.0),
        1.0,
        [1.0, 2.0],
    ],
    ids=lambda x: str(x)[:20],
)
def test_levels_that_are_no_numbers_of_examples_are_refused_in_one_line(wrong):
    model = convert(network(), load_profile("generic-4bit"), chip=0)
    with pytest.raises(ValueError, match=r"^fluctuate: levels are one finite number from 0 on for each example, \(n,\), not ") as caught:
        fluctuate(model, wrong)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_digital_model_is_refused():
    with pytest.raises(ValueError, match="no analog layer"):
        fluctuate(network(), LEVELS)


def test_an_empty_batch_takes_an_empty_level():
    model = convert(network(), profile(output=(Gaussian(std=0.1), Quantize(bits=4)), output_range=Calibrated()), chip=0)
    calibrate_ranges(model, [X])
    assert fluctuate(model, torch.ones(0))(X[:0]).shape == (0, 3)
