"""Effects do not commute: in which order a device has them matters, and the order of a profile is that order."""

from math import sqrt

import pytest
import torch
from scipy import stats
from torch import nn

import galvanic as gv
from galvanic.physics import Context, Drift, Gaussian, Nonideality, Programming, Quantize, RandomTelegraph, Saturate
from galvanic.seeding import generator

N = 200_000
AT = Context()


def through(effects: tuple[Nonideality, ...], x: torch.Tensor) -> torch.Tensor:
    for index, effect in enumerate(effects):
        x = effect.apply(x, effect.draw(tuple(x.shape), generator("order", index), dtype=x.dtype), AT)
    return x


def test_noise_before_saturation_is_cut_and_after_it_is_not():
    x = torch.full((N,), 0.95, dtype=torch.float64)
    amplifier, noise = Saturate(limit=1.0), Gaussian(std=0.1)
    cut, whole = through((noise, amplifier), x), through((amplifier, noise), x)
    a = 0.05 / 0.1  # to the limit, in standard deviations
    mean = 0.95 - 0.1 * (stats.norm.pdf(a) - a * stats.norm.sf(a))  # of a normal variable above a limit set to it
    assert float(cut.mean()) == pytest.approx(mean, abs=5 * 0.1 / sqrt(N))
    assert float(whole.mean()) == pytest.approx(0.95, abs=5 * 0.1 / sqrt(N))
    assert cut.max() == 1 < 1.3 < whole.max()


def test_noise_before_a_converter_leaves_levels_and_after_it_does_not():
    x = torch.linspace(-0.9, 0.9, 1000, dtype=torch.float64)
    converter, noise = Quantize(bits=4), Gaussian(std=0.05)
    assert len(through((noise, converter), x).unique()) <= 15
    assert len(through((converter, noise), x).unique()) == 1000


def aged(weight: tuple[Nonideality, ...], age_s: float) -> torch.Tensor:
    """Weights that were asked to be 1, as a chip holds them at an age."""
    layer = nn.Linear(200, 200, bias=False)
    nn.init.ones_(layer.weight)
    chip = gv.age(gv.convert(layer, gv.Profile(name="order", weight=weight), chip=3), age_s)
    with torch.no_grad():
        return chip(torch.eye(200)).flatten()


def test_what_was_written_drifts_with_its_error_and_an_error_made_after_drift_stays_whole():
    age_s, nu, std, n = 1e6, 0.1, 0.05, 200 * 200
    left = (1 + age_s / 20) ** -nu
    drift, error = Drift(nu=nu), Programming(std=std)
    device, reverse = aged((error, drift), age_s), aged((drift, error), age_s)
    for g, spread in ((device, std * left), (reverse, std)):
        assert float(g.mean()) == pytest.approx(left, abs=5 * spread / sqrt(n) + 1e-5)
        assert float(g.std()) == pytest.approx(spread, rel=5 / sqrt(2 * n))
    assert left < 0.5


def test_a_slow_trap_holds_its_state_in_one_snapshot_and_has_another_in_the_next():
    layer = nn.Linear(50, 50, bias=False)
    model = gv.convert(layer, gv.Profile(name="trap", weight=(RandomTelegraph(amplitude=0.3),)), chip=0)
    with torch.no_grad():
        first, again = (model(torch.eye(50)) for _ in range(2))
        later = gv.age(model, 10.0, snapshot=1)(torch.eye(50))
    assert torch.equal(first, again)
    changed = float((first != later).double().mean())
    assert changed == pytest.approx(0.5, abs=5 * sqrt(0.25 / 2500))  # a trap that is full half of the time
