"""What befalls one line of an array, a row or a column, as a whole."""

from dataclasses import dataclass

import torch
from torch import Tensor

from galvanic.physics.base import Context, Nonideality, Per
from galvanic.physics.faults import _quantile
from galvanic.physics.value import Fraction, NonNegative, Scalar


@dataclass(frozen=True, kw_only=True)
class GainOffset(Nonideality):
    r"""Gain and offset error of the amplifier of each line, $y = x\,(1 + \gamma + \sigma_\gamma z_1) + o + \sigma_o z_2$.

    Args:
        gain: systematic gain error $\gamma$, relative; 0 is none.
        offset: systematic offset $o$, in units of full scale.
        gain_std: $\sigma_\gamma$, relative.
        offset_std: $\sigma_o$, in units of full scale.
        shared: whether one amplifier serves all lines of a layer (an error of the chip), or each line has its own.
    """

    gain: Scalar = 0.0
    offset: Scalar = 0.0
    gain_std: NonNegative = 0.0
    offset_std: NonNegative = 0.0
    shared: bool = False
    per: Per = "chip"

    def draw(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        r"""Two standard normal draws stacked, (2, \*shape): of the gain, of the offset."""
        drawn = (1,) * len(shape) if self.shared else shape
        return super().draw((2, *drawn), generator, device=device, dtype=dtype).expand(2, *shape)

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        y = x + self.gain * x + self.offset
        return y if z is None else y + at.noise_level * (self.gain_std * z[0] * x + self.offset_std * z[1])


@dataclass(frozen=True, kw_only=True)
class DeadLine(Nonideality):
    r"""A line that is broken with probability $p$: its signal is `value` whatever comes.

    Among the inputs it is a row, among the outputs a column; among the weights every cell would be on its own, which is `StuckAt`.
    No gradient passes a dead line; to the probability it is 0, since which line is dead is a jump.

    Args:
        fraction: $p$.
        value: what a dead line carries, in units of full scale.
    """

    fraction: Fraction
    value: Scalar = 0.0
    per: Per = "chip"

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        return x if z is None else torch.where(z < _quantile(at.noise_level * self.fraction), self.value, x)
