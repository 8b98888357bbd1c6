"""Noise on signals: Gaussian, thermal, shot."""

from dataclasses import dataclass

import torch
from torch import Tensor

from galvanic.physics.base import Additive, Context, Per
from galvanic.physics.value import NonNegative, Positive, Scalar

BOLTZMANN_J_PER_K = 1.380649e-23  # exact since the SI of 2019
ELECTRON_C = 1.602176634e-19  # exact since the SI of 2019


def _root(x: Scalar) -> Scalar:
    """Square root with a finite gradient at zero."""
    return x.clamp(min=torch.finfo(x.dtype).tiny) ** 0.5 if isinstance(x, Tensor) else x**0.5


@dataclass(frozen=True, kw_only=True)
class Gaussian(Additive):
    r"""Gaussian noise, $y = x + \sigma z$, or $y = x + \sigma |x| z$ where it is relative.

    Args:
        std: $\sigma$, in units of full scale, or of the signal where `relative`.
        relative: whether it grows with the signal.
    """

    std: NonNegative
    relative: bool = False
    per: Per = "read"

    def sigma(self, x: Tensor, at: Context) -> Scalar:
        return self.std * x.abs() if self.relative else self.std


@dataclass(frozen=True, kw_only=True)
class Thermal(Additive):
    r"""Johnson-Nyquist current noise of a resistor, $\sigma = \sqrt{4 k T B / R}\,/\,I_\mathrm{fs}$.

    Args:
        resistance_ohm: $R$ of the load or feedback resistor.
        bandwidth_Hz: $B$, noise bandwidth.
        full_scale_A: $I_\mathrm{fs}$, the current that counts as 1.

    Reference:
        Nyquist, Thermal agitation of electric charge in conductors, Phys. Rev. 32, 1928.
    """

    resistance_ohm: Positive
    bandwidth_Hz: Positive
    full_scale_A: Positive
    per: Per = "read"

    def sigma(self, x: Tensor, at: Context) -> Scalar:
        return _root(4 * BOLTZMANN_J_PER_K * at.temperature_K * self.bandwidth_Hz / self.resistance_ohm / self.full_scale_A**2)


@dataclass(frozen=True, kw_only=True)
class Shot(Additive):
    r"""Shot noise of a current, $\sigma = \sqrt{2 q B\,(|x| I_\mathrm{fs} + I_\mathrm{dark})}\,/\,I_\mathrm{fs}$.

    Args:
        bandwidth_Hz: $B$, noise bandwidth.
        full_scale_A: $I_\mathrm{fs}$, the current that counts as 1.
        dark_A: $I_\mathrm{dark}$, current that flows without a signal.

    Reference:
        Schottky, Über spontane Stromschwankungen in verschiedenen Elektrizitätsleitern, Ann. Phys. 362, 1918.
    """

    bandwidth_Hz: Positive
    full_scale_A: Positive
    dark_A: NonNegative = 0.0
    per: Per = "read"

    def sigma(self, x: Tensor, at: Context) -> Scalar:
        current = x.abs() * self.full_scale_A + self.dark_A
        return _root(2 * ELECTRON_C * self.bandwidth_Hz * current / self.full_scale_A**2)
