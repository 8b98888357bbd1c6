"""Many chips in one call, against a loop over chips."""

import copy

import pytest
import torch
from torch import nn

from galvanic import age, at, calibrate_ranges, convert, ensemble, load_profile, program, reads
from galvanic.nn import GlobalDrift, analog_layers, compensate
from galvanic.physics import (
    BitSerial,
    BitSliced,
    Conditions,
    Correlated,
    Crosstalk,
    DeadLine,
    DifferentialPair,
    Drift,
    GainOffset,
    Gaussian,
    Mismatch,
    NonlinearCrossbar,
    OffsetColumn,
    Parallel,
    Programming,
    Quantize,
    ReadNoise,
    SignSplit,
    SinhCell,
    StuckAt,
    WireResistance,
)
from galvanic.profile import Profile
from galvanic.ranges import Calibrated, Dynamic, Fixed, FromData, Learned

DOUBLE = torch.float64
CHIPS = (3, 0, 11, 3)
WIRES = WireResistance(on_ohm=1000.0, row_ohm=5.0, column_ohm=5.0)


class Attention(nn.Module):
    """Self-attention, its output alone; with weights, since what computes it without has no batching rule in torch."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Hidden(nn.Module):
    """The hidden states of a recurrent layer."""

    def __init__(self, kind):
        super().__init__()
        self.layer = kind(4, 3)

    def forward(self, x):
        return self.layer(x)[0]


MODELS = {
    "linear layers": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)), (4, 6)),
    "a linear layer, one vector": (lambda: nn.Linear(6, 5), (6,)),
    "convolutions": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(4, 2, (1, 2))), (2, 4, 4, 3)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (2, 4, 3)),
    "normalised": (lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).eval(), (4, 6)),
    "attention": (Attention, (2, 3, 4)),
    "lstm": (lambda: Hidden(nn.LSTM), (3, 2, 4)),
    "gru": (lambda: Hidden(nn.GRU), (3, 2, 4)),
}
PROFILES = {
    "pcm": load_profile("pcm"),
    "generic-4bit": load_profile("generic-4bit"),
    "fabrication": Profile(
        name="f",
        input=(DeadLine(fraction=0.1), Quantize(bits=6)),
        weight=(Mismatch(std=0.1), StuckAt(low_fraction=0.05, high_fraction=0.05)),
        output=(GainOffset(gain_std=0.05, offset_std=0.05), Quantize(bits=6)),
        rows=12,
        input_range=Learned(),
        output_range=Calibrated(),
    ),
    "slices and passes": Profile(
        name="s",
        weight=(Programming(std=0.02),),
        output=(GainOffset(offset_std=0.02), Quantize(bits=8)),
        encoding=BitSliced(of=OffsetColumn(), bits=3, slices=2),
        input_coding=BitSerial(bits=5, per_pass=2),
        rows=12,
        output_range=Fixed(value=8.0),
    ),
    "parallel, by sign": Profile(
        name="s",
        weight=(Gaussian(std=0.05, per="chip"), Drift(nu=0.05, nu_std=0.02), ReadNoise(q=0.01)),
        encoding=Parallel(of=DifferentialPair(g_min=0.1), count=2),
        input_coding=SignSplit(),
    ),
    "weights alone": Profile(name="w", weight=(Gaussian(std=0.05, per="write"),)),
    "neighbours": Profile(
        name="n",
        weight=(Correlated(std=0.05, length=2.0, per="chip"), Crosstalk(kappa=0.05, along="columns")),
        rows=18,
        columns=2,
        output=(Quantize(bits=8),),
        output_range=Dynamic(),
    ),
    "wires": Profile(
        name="w",
        weight=(Gaussian(std=0.02, per="write"),),
        encoding=DifferentialPair(g_min=0.1),
        product=WIRES,
        rows=18,
        columns=3,
    ),
    "curved cells": Profile(
        name="c", weight=(Gaussian(std=0.02, per="write"),), encoding=DifferentialPair(g_min=0.1), product=SinhCell(kappa=2.0)
    ),
}


def on_chip(kind, p, *, chip=5):
    torch.manual_seed(0)
    make, shape = MODELS[kind]
    x = torch.randn(shape, dtype=DOUBLE)
    model = calibrate_ranges(convert(make().double(), p, chip=chip), [x, x / 2])
    for layer in analog_layers(model).values():
        for side in ("input", "output"):
            if isinstance(getattr(p, f"{side}_range"), FromData) and p.converts(side):
                layer.set_range(side, 1.01 * layer.full_scale(side))  # no signal at its end, where rounding decides about the gradient
    return model, x


def loop(model, x, chips, *, write=0, age_s=0.0):
    return torch.stack([age(program(model, chip, write), age_s)(x) for chip in chips])


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("kind", MODELS)
def test_an_ensemble_is_the_loop_over_chips_and_its_gradients_are_the_sums_over_the_loop(kind, name):
    model, x = on_chip(kind, PROFILES[name])
    x.requires_grad_()
    wanted = [x, *model.parameters()]
    with reads(model, "off"):
        together = ensemble(model, x, chips=CHIPS)
        found = torch.autograd.grad((together * torch.arange(1, 5).view(-1, *[1] * (together.ndim - 1))).sum(), wanted)
        total = [torch.zeros_like(p) for p in wanted]
        for k, chip in enumerate(CHIPS):
            y = loop(model, x, [chip])[0]
            assert_same(together[k], y)
            for sum_, g in zip(total, torch.autograd.grad((k + 1) * y.sum(), wanted), strict=True):
                sum_ += g
    assert_same(together[0], together[3])
    assert not torch.allclose(together[0], together[1])
    for a, b in zip(found, total, strict=True):
        assert_same(a, b)


def test_a_circuit_that_is_solved_for_every_vector_is_the_loop_over_chips():
    circuit = NonlinearCrossbar(wires=WIRES, cell=SinhCell(kappa=1.0))
    model, x = on_chip(
        "linear layers",
        Profile(name="c", weight=(Gaussian(std=0.02, per="write"),), encoding=DifferentialPair(g_min=0.1), product=circuit),
    )
    with torch.no_grad():
        assert_same(ensemble(model, x, chips=CHIPS), loop(model, x, CHIPS))


@pytest.mark.parametrize("age_s", [0.0, 3600.0])
@pytest.mark.parametrize("write", [0, 2])
def test_write_and_age_are_those_of_every_chip(write, age_s):
    model, x = on_chip("convolutions", PROFILES["pcm"])
    with reads(model, "off"), torch.no_grad():
        found = ensemble(model, x, chips=CHIPS, write=write, age_s=age_s)
        assert_same(found, loop(model, x, CHIPS, write=write, age_s=age_s))
        others = [ensemble(model, x, chips=CHIPS, write=w, age_s=a) for w in (0, 2) for a in (0.0, 3600.0) if (w, a) != (write, age_s)]
    assert all(not torch.allclose(found, other) for other in others)


@pytest.mark.parametrize("conditions", [Conditions(noise_level=2.0), Conditions(noise_level=0.0), Conditions(age_s=1e5, noise_level=0.5)])
def test_conditions_hold_but_for_the_age(conditions):
    model, x = on_chip("linear layers", PROFILES["pcm"])
    at(model, conditions)
    with reads(model, "off"), torch.no_grad():
        found = ensemble(model, x, chips=CHIPS, age_s=60.0)
        assert all(layer.conditions == conditions for layer in analog_layers(model).values())
        assert_same(found, loop(model, x, CHIPS, age_s=60.0))
    spread = found.std(0).max()
    assert (spread < 1e-12) == (float(conditions.noise_level) == 0)


@pytest.mark.parametrize("kind", ["linear layers", "normalised", "attention", "lstm"])
def test_the_model_is_left_as_it_is(kind):
    model, x = on_chip(kind, PROFILES["pcm"])
    age(program(model, 7, write=2), 100.0)
    with reads(model, "off"), torch.no_grad():
        before = model(x)  # fills what is kept between reads
        state = copy.deepcopy(model.state_dict())
        layers = analog_layers(model)
        where = {name: (m.chip, m.conditions, m.gain, m.reads, m._stamp) for name, m in layers.items()}
        kept = {name: m._kept for name, m in layers.items()}
        draws = {name: {key: z.clone() for key, z in m._draws.items()} for name, m in layers.items()}
        modes = [m.training for m in model.modules()]
        stream = torch.get_rng_state()
        ensemble(model, x, chips=CHIPS, write=1, age_s=5.0)
        assert torch.equal(torch.get_rng_state(), stream)
        assert [m.training for m in model.modules()] == modes
        assert set(model.state_dict()) == set(state)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        for name, m in analog_layers(model).items():
            assert m is layers[name]
            assert (m.chip, m.conditions, m.gain, m.reads, m._stamp) == where[name]
            assert m._kept is kept[name]
            assert draws[name].keys() == m._draws.keys()
            assert all(torch.equal(z, draws[name][key]) for key, z in m._draws.items())
        assert torch.equal(model(x), before)


def test_an_ensemble_after_an_ensemble_and_with_changed_weights_is_the_loop():
    model, x = on_chip("linear layers", PROFILES["pcm"])
    with reads(model, "off"), torch.no_grad():
        first = ensemble(model, x, chips=CHIPS)
        assert torch.equal(ensemble(model, x, chips=CHIPS), first)
        model[0].weight.mul_(-1)
        second = ensemble(model, x, chips=CHIPS)
        assert not torch.allclose(second, first)
        assert_same(second, loop(model, x, CHIPS))


# -- noise per read ---------------------------------------------------------------------------------------------------------------------

NOISY = Profile(name="n", output=(Gaussian(std=0.1),), output_range=Fixed(value=1.0))


@pytest.mark.parametrize(
    "p",
    [NOISY, Profile(name="c", weight=(Gaussian(std=0.1), Gaussian(std=0.01, per="write")), encoding=DifferentialPair()), PROFILES["pcm"]],
    ids=["output", "cells", "pcm"],
)
def test_noise_per_read_differs_between_chips_vectors_and_calls(p):
    model, x = on_chip("linear layers", p)
    x = x[:1].expand(4, 6)
    with torch.no_grad():
        first, second = (ensemble(model, x, chips=(1, 1, 1)) for _ in range(2))
    answers = torch.cat([first.flatten(0, 1), second.flatten(0, 1)])  # 24 reads of one vector on one chip
    digitised = any(isinstance(e, Quantize) for e in p.output)
    assert len(answers.unique(dim=0)) == 24 if not digitised else len(answers.unique(dim=0)) > 12


@pytest.mark.parametrize("fabricated", [True, False])
def test_noise_per_read_has_the_deviation_of_single_chips_and_is_independent_between_them(fabricated):
    """Of n numbers a variance is known to sqrt(2 / n), a correlation to 1 / sqrt(n)."""
    n = 10_000
    p = Profile(
        name="n",
        weight=(Gaussian(std=0.0, per="chip"),) if fabricated else (),
        output=(Gaussian(std=0.1),),
        output_range=Fixed(value=1.0),
    )
    model, x = on_chip("a linear layer, one vector", p)
    torch.manual_seed(0)
    with torch.no_grad():
        y = ensemble(model, x.expand(n, 6), chips=(0, 1))
        errors = (y - model.digital(x, model.weight)) / model.scale().flatten()
    assert (errors.var(1) / 0.1**2 - 1).abs().max() < 5 * (2 / n) ** 0.5
    assert abs(torch.corrcoef(errors.flatten(1))[0, 1].item()) < 5 / (5 * n) ** 0.5


def test_a_seed_reproduces_an_ensemble():
    model, x = on_chip("linear layers", PROFILES["pcm"])
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        answers.append(ensemble(model, x, chips=CHIPS))
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_where_nothing_is_drawn_all_chips_answer_alike():
    model, x = on_chip("linear layers", Profile(name="q", input=(Quantize(bits=4),), input_range=Dynamic()))
    y = ensemble(model, x, chips=range(3))
    assert y.shape == (3, 4, 3)
    assert_same(y, model(x).expand(3, 4, 3))


def test_only_some_layers_may_be_on_chips():
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).double(), {"1": PROFILES["weights alone"], "0": None}, chip=0)
    x = torch.randn(4, 6, dtype=DOUBLE)
    assert_same(ensemble(model, x, chips=CHIPS), loop(model, x, CHIPS))


def test_a_model_on_an_anonymous_chip_answers_for_numbered_ones():
    model, x = on_chip("linear layers", PROFILES["weights alone"], chip=None)
    before = model(x)
    assert_same(ensemble(model, x, chips=iter(CHIPS)), loop(copy.deepcopy(model), x, CHIPS))
    assert torch.equal(model(x), before)


# -- mistakes ---------------------------------------------------------------------------------------------------------------------------


def test_no_chip_is_refused():
    model, x = on_chip("linear layers", NOISY)
    with pytest.raises(ValueError, match=r"^ensemble: chips = \[\]: one number or more$"):
        ensemble(model, x, chips=[])


@pytest.mark.parametrize("chip", [-1, 0.5, "0"])
def test_a_chip_that_is_no_whole_number_is_refused_and_the_model_stays(chip):
    model, x = on_chip("linear layers", PROFILES["weights alone"])
    before = model(x)
    with pytest.raises(ValueError, match=r"^chip = .*: a whole number from 0 on"):
        ensemble(model, x, chips=[0, chip])
    assert torch.equal(model(x), before)


def test_a_model_without_analog_layers_is_refused():
    with pytest.raises(ValueError, match="the model has no analog layer"):
        ensemble(nn.Linear(2, 2), torch.zeros(1, 2), chips=[0])


def test_the_drift_compensation_of_one_chip_is_refused_by_the_name_of_its_layer_until_the_next_write():
    model, x = on_chip("linear layers", PROFILES["pcm"])
    compensate(age(model, 1e4), GlobalDrift(probes=8))
    with pytest.raises(ValueError, match=r"^ensemble: layer 0 has the drift compensation of one chip"):
        ensemble(model, x, chips=CHIPS)
    assert ensemble(program(model, 1), x, chips=CHIPS).shape == (4, 4, 3)
