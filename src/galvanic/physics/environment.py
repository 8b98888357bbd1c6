"""What temperature and supply do; none of it is random."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from galvanic.physics.base import Context, Nonideality
from galvanic.physics.noise import BOLTZMANN_J_PER_K, ELECTRON_C
from galvanic.physics.value import Positive, Scalar, as_tensor


@dataclass(frozen=True, kw_only=True)
class TemperatureCoefficient(Nonideality):
    r"""Gain and offset that follow the temperature, $y = x\,(1 + \alpha\,(T - T_0)) + \beta\,(T - T_0)$.

    Args:
        gain_per_K: $\alpha$, relative, per kelvin.
        offset_per_K: $\beta$, in units of full scale, per kelvin.
        reference_K: $T_0$, where the device was calibrated.
    """

    gain_per_K: Scalar = 0.0
    offset_per_K: Scalar = 0.0
    reference_K: Positive = 300.0
    after_write: ClassVar[bool] = True

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        away = at.temperature_K - self.reference_K
        return x + away * self.gain_per_K * x + away * self.offset_per_K


@dataclass(frozen=True, kw_only=True)
class SupplyCoefficient(Nonideality):
    r"""Gain and offset that follow the supply voltage, $y = x\,(1 + \alpha\,(V - V_0)) + \beta\,(V - V_0)$.

    Args:
        gain_per_V: $\alpha$, relative, per volt.
        offset_per_V: $\beta$, in units of full scale, per volt.
        reference_V: $V_0$, where the device was calibrated.
    """

    gain_per_V: Scalar = 0.0
    offset_per_V: Scalar = 0.0
    reference_V: Positive = 1.0
    after_write: ClassVar[bool] = True

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        away = at.supply_V - self.reference_V
        return x + away * self.gain_per_V * x + away * self.offset_per_V


@dataclass(frozen=True, kw_only=True)
class Activated(Nonideality):
    r"""Thermally activated conduction, $g(T) = g\,\exp\!\big(-\tfrac{E_a}{k} (\tfrac{1}{T} - \tfrac{1}{T_0})\big)$.

    Args:
        energy_eV: activation energy $E_a$; negative where the conductance falls as it gets warmer.
        reference_K: $T_0$, where the conductance is as written.

    Reference:
        Arrhenius, Über die Reaktionsgeschwindigkeit bei der Inversion von Rohrzucker durch Säuren, Z. Phys. Chem. 4, 1889.
    """

    energy_eV: Scalar
    reference_K: Positive = 300.0
    after_write: ClassVar[bool] = True

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        per_kelvin = self.energy_eV * ELECTRON_C / BOLTZMANN_J_PER_K
        return x * torch.exp(-as_tensor(per_kelvin * (1 / at.temperature_K - 1 / self.reference_K)))
