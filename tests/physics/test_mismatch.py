from math import sqrt

import pytest
import torch
from scipy import stats

from galvanic.physics import AreaMismatch, Context, LogNormalMismatch, Mismatch
from galvanic.seeding import generator

N = 200_000
WITHIN = 5 * sqrt(2 / N)  # five standard errors of a sample variance, relative


def sample(effect, signal: float, noise_level: float = 1.0) -> torch.Tensor:
    x = torch.full((N,), signal, dtype=torch.float64)
    return effect.apply(x, effect.draw(x.shape, generator("mismatch"), dtype=x.dtype), Context(noise_level=noise_level))


@pytest.mark.parametrize("signal", [-0.8, 0.1, 1.0])
def test_mismatch_is_a_relative_error(signal):
    assert float((sample(Mismatch(std=0.03), signal) / signal - 1).var()) == pytest.approx(0.03**2, rel=WITHIN)


@pytest.mark.parametrize("noise_level", [1.0, 2.0])
@pytest.mark.parametrize("signal", [-0.8, 0.5])
def test_log_normal_mismatch_has_the_log_normal_distribution_around_the_signal_as_median(signal, noise_level):
    ratio = sample(LogNormalMismatch(std=0.3), signal, noise_level).numpy() / signal
    assert stats.kstest(ratio, stats.lognorm(s=0.3 * noise_level).cdf).pvalue > 1e-3


@pytest.mark.parametrize("weight", [-1.0, -0.04, 0.25, 4.0])
def test_the_variance_of_area_mismatch_is_a_squared_times_the_magnitude(weight):
    assert float(sample(AreaMismatch(a=0.05), weight).var()) == pytest.approx(0.05**2 * abs(weight), rel=WITHIN)


def test_area_mismatch_is_that_of_a_weight_made_of_mismatched_units():
    units = 1 + 0.05 * torch.randn(N, 9, dtype=torch.float64, generator=generator("units"))
    assert float(sample(AreaMismatch(a=0.05), 9.0).var()) == pytest.approx(float(units.sum(1).var()), rel=2 * WITHIN)
