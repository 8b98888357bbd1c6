from math import sqrt

import pytest
import torch

from galvanic.physics import Context, StuckAt
from galvanic.seeding import generator

N = 1_000_000


def stuck(effect: StuckAt, noise_level: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.full((N,), 0.5, dtype=dtype)
    return effect.apply(x, effect.draw(x.shape, generator("faults"), dtype=dtype), Context(noise_level=noise_level))


def is_rate(hits: torch.Tensor, p: float) -> bool:
    return abs(float(hits.double().mean()) - p) <= 5 * sqrt(p * (1 - p) / N)  # five standard errors of a binomial share


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("low_fraction", "high_fraction"), [(0.001, 0.001), (0.0, 0.05), (0.2, 0.0), (0.3, 0.7), (1.0, 0.0), (0.0, 1.0)])
def test_devices_are_stuck_at_the_stated_rates_and_conductances_and_the_others_untouched(dtype, low_fraction, high_fraction):
    y = stuck(StuckAt(low_fraction=low_fraction, high_fraction=high_fraction, low=0.125, high=0.75), dtype=dtype)
    assert is_rate(y == 0.125, low_fraction)
    assert is_rate(y == 0.75, high_fraction)
    assert is_rate(y == 0.5, 1 - low_fraction - high_fraction)


@pytest.mark.parametrize("drawn", [torch.bfloat16, torch.float32], ids=str)
def test_the_rates_hold_in_bfloat16_drawn_in_it_or_rounded_to_it(drawn):
    effect, x = StuckAt(low_fraction=0.001, high_fraction=0.001), torch.full((N,), 0.5, dtype=torch.bfloat16)
    y = effect.apply(x, effect.draw(x.shape, generator("faults"), dtype=drawn).to(x.dtype), Context())
    shares = float((y == 0).double().mean()), float((y == 1).double().mean())
    assert shares == pytest.approx((0.001, 0.001), rel=0.16 + 0.03)  # five standard errors, and the grid of bfloat16


def test_the_noise_level_multiplies_the_rates_and_adds_faults_to_those_there_were():
    effect = StuckAt(low_fraction=0.01, high_fraction=0.02)
    once, thrice = stuck(effect), stuck(effect, 3.0)
    assert is_rate(thrice == 0, 0.03)
    assert is_rate(thrice == 1, 0.06)
    assert (thrice[once != 0.5] == once[once != 0.5]).all()


def test_no_gradient_passes_a_stuck_device_and_all_of_it_another():
    effect = StuckAt(low_fraction=0.3, high_fraction=0.3)
    x = torch.full((1000,), 0.5, requires_grad=True)
    y = effect.apply(x, effect.draw(x.shape, generator("faults")), Context())
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, (y == 0.5).float())


def test_at_a_noise_level_that_leaves_no_device_whole_all_are_stuck():
    assert (stuck(StuckAt(low_fraction=0.3), 5.0) == 0).all()


def test_more_faults_than_devices_are_refused():
    with pytest.raises(ValueError, match=r"low_fraction \+ high_fraction = 1.2, which is more than 1"):
        StuckAt(low_fraction=0.6, high_fraction=0.6)
