import numpy as np
import pytest
import torch
from scipy import constants

from galvanic.physics import Activated, Context, SupplyCoefficient, TemperatureCoefficient

X = torch.tensor([-0.5, 0.0, 0.8], dtype=torch.float64)


def test_at_the_reference_nothing_happens():
    at = Context(temperature_K=310.0, supply_V=0.8)
    for effect in (
        TemperatureCoefficient(gain_per_K=0.01, offset_per_K=0.02, reference_K=310.0),
        SupplyCoefficient(gain_per_V=0.3, offset_per_V=0.2, reference_V=0.8),
        Activated(energy_eV=0.3, reference_K=310.0),
    ):
        torch.testing.assert_close(effect.apply(X, None, at), X, rtol=0, atol=1e-15)


@pytest.mark.parametrize("away", [-25.0, 60.0])
def test_gain_and_offset_follow_temperature_and_supply_by_their_coefficients(away):
    warm = TemperatureCoefficient(gain_per_K=-0.002, offset_per_K=0.001).apply(X, None, Context(temperature_K=300 + away))
    np.testing.assert_allclose(warm, X * (1 - 0.002 * away) + 0.001 * away, rtol=0, atol=1e-14)
    volts = away / 100
    sagging = SupplyCoefficient(gain_per_V=0.4, offset_per_V=-0.1).apply(X, None, Context(supply_V=1 + volts))
    np.testing.assert_allclose(sagging, X * (1 + 0.4 * volts) - 0.1 * volts, rtol=0, atol=1e-14)


@pytest.mark.parametrize("energy_eV", [-0.05, 0.12, 0.6])
def test_the_arrhenius_plot_is_a_line_whose_slope_is_the_activation_energy(energy_eV):
    temperatures = np.linspace(250.0, 400.0, 7)
    g = [float(Activated(energy_eV=energy_eV).apply(X, None, Context(temperature_K=float(t)))[2]) for t in temperatures]
    slope, intercept = np.polyfit(1 / temperatures, np.log(g), 1)
    assert -slope * constants.k / constants.e == pytest.approx(energy_eV, rel=1e-9)
    assert np.exp(intercept + slope / 300.0) == pytest.approx(0.8, rel=1e-9)
