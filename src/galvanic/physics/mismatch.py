"""Differences between devices that were drawn alike."""

from dataclasses import dataclass

import torch
from torch import Tensor

from galvanic.physics.base import Additive, Context, Nonideality, Per
from galvanic.physics.noise import _root
from galvanic.physics.value import NonNegative, Scalar


@dataclass(frozen=True, kw_only=True)
class Mismatch(Additive):
    r"""Relative mismatch, $y = x (1 + \sigma z)$.

    Args:
        std: $\sigma$, relative.
    """

    std: NonNegative
    per: Per = "chip"

    def sigma(self, x: Tensor, at: Context) -> Scalar:
        return self.std * x.abs()


@dataclass(frozen=True, kw_only=True)
class LogNormalMismatch(Nonideality):
    r"""Mismatch of a quantity that is an exponential of a normal one (subthreshold currents), $y = x\,e^{\sigma z}$; median kept.

    Args:
        std: $\sigma$ of the logarithm.
    """

    std: NonNegative
    per: Per = "chip"

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        return x if z is None else x * torch.exp(at.noise_level * self.std * z)


@dataclass(frozen=True, kw_only=True)
class AreaMismatch(Additive):
    r"""Mismatch whose variance grows with the weight, $\Delta W \sim N(0, a^2 |W|)$: a weight made of |W| equal units, each mismatched.

    Args:
        a: standard deviation at |W| = 1.
    """

    a: NonNegative
    per: Per = "chip"

    def sigma(self, x: Tensor, at: Context) -> Scalar:
        return self.a * _root(x.abs())
