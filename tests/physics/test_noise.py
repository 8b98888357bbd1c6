from math import sqrt

import pytest
import torch
from scipy import constants

from galvanic.physics import Context, Gaussian, Shot, Thermal
from galvanic.seeding import generator

N = 200_000
WITHIN = 5 / sqrt(2 * N)  # five standard errors of a sample standard deviation, relative


def spread(effect, signal: float, at: Context | None = None) -> float:
    x = torch.full((N,), signal, dtype=torch.float64)
    y = effect.apply(x, effect.draw(x.shape, generator("noise"), dtype=x.dtype), Context() if at is None else at)
    assert float(y.mean()) == pytest.approx(signal, abs=5 * float(y.std()) / sqrt(N))
    return float(y.std())


@pytest.mark.parametrize("temperature_K", [77.0, 300.0, 400.0])
@pytest.mark.parametrize(("resistance_ohm", "bandwidth_Hz", "full_scale_A"), [(1e3, 1e8, 1e-5), (1e6, 1e6, 1e-9), (1e12, 10.0, 1e-14)])
def test_thermal_noise_is_that_of_nyquist(temperature_K, resistance_ohm, bandwidth_Hz, full_scale_A):
    effect = Thermal(resistance_ohm=resistance_ohm, bandwidth_Hz=bandwidth_Hz, full_scale_A=full_scale_A)
    expected = sqrt(4 * constants.k * temperature_K * bandwidth_Hz / resistance_ohm) / full_scale_A
    for at in (Context(temperature_K=temperature_K), Context(temperature_K=torch.tensor(temperature_K, dtype=torch.float64))):
        assert float(effect.sigma(torch.zeros(()), at)) == pytest.approx(expected, rel=1e-12)
    assert spread(effect, 0.5, Context(temperature_K=temperature_K)) == pytest.approx(expected, rel=WITHIN)


@pytest.mark.parametrize("signal", [-1.0, -0.1, 0.1, 1.0])
@pytest.mark.parametrize("dark_A", [0.0, 2e-9])
def test_shot_noise_is_that_of_schottky_on_the_magnitude_of_the_current(signal, dark_A):
    effect = Shot(bandwidth_Hz=1e6, full_scale_A=1e-8, dark_A=dark_A)
    expected = sqrt(2 * constants.e * (abs(signal) * 1e-8 + dark_A) * 1e6) / 1e-8
    assert float(effect.sigma(torch.tensor(signal, dtype=torch.float64), Context())) == pytest.approx(expected, rel=1e-12)
    assert spread(effect, signal) == pytest.approx(expected, rel=WITHIN)


def test_dark_current_alone_makes_shot_noise():
    expected = sqrt(2 * constants.e * 2e-9 * 1e6) / 1e-8
    assert spread(Shot(bandwidth_Hz=1e6, full_scale_A=1e-8, dark_A=2e-9), 0.0) == pytest.approx(expected, rel=WITHIN)


@pytest.mark.parametrize("signal", [-2.0, 0.0, 0.3])
def test_gaussian_noise_has_one_strength_or_grows_with_the_signal(signal):
    assert spread(Gaussian(std=0.02), signal) == pytest.approx(0.02, rel=WITHIN)
    assert spread(Gaussian(std=0.02, relative=True), signal) == pytest.approx(0.02 * abs(signal), rel=WITHIN)


@pytest.mark.parametrize("noise_level", [0.5, 3.0])
def test_the_noise_level_multiplies_the_standard_deviation(noise_level):
    for effect in (Gaussian(std=0.02), Thermal(resistance_ohm=1e6, bandwidth_Hz=1e6, full_scale_A=1e-9)):
        assert spread(effect, 0.1, Context(noise_level=noise_level)) == pytest.approx(noise_level * spread(effect, 0.1), rel=1e-9)
