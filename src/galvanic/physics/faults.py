"""Devices that do not work."""

from dataclasses import dataclass

import torch
from torch import Tensor

from galvanic.physics.base import Context, Nonideality, Per
from galvanic.physics.value import Fraction, Scalar, as_tensor


@dataclass(frozen=True, kw_only=True)
class StuckAt(Nonideality):
    r"""Devices that stay at one conductance whatever is written: `low` with probability $p_\mathrm{low}$, `high` with $p_\mathrm{high}$.

    The gradient to the signal is 0 where a device is stuck; to the two probabilities it is 0, since which device is stuck is a jump.

    Args:
        low_fraction: $p_\mathrm{low}$.
        high_fraction: $p_\mathrm{high}$.
        low: conductance of the first kind, in units of full scale.
        high: of the second.

    Raises:
        ValueError: fractions that add up to more than 1.
    """

    low_fraction: Fraction = 0.0
    high_fraction: Fraction = 0.0
    low: Scalar = 0.0
    high: Scalar = 1.0
    per: Per = "chip"

    def __post_init__(self) -> None:
        super().__post_init__()
        total = self.low_fraction + self.high_fraction
        if not isinstance(total, Tensor) and total > 1:
            raise ValueError(f"StuckAt: low_fraction + high_fraction = {total:g}, which is more than 1")

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        if z is None:
            return x
        low, high = at.noise_level * self.low_fraction, at.noise_level * self.high_fraction
        x = torch.where(_among(z, low), self.low, x)
        return torch.where(_among(-z, high), self.high, x)


def _among(z: Tensor, p: Scalar) -> Tensor:
    """Whether a standard normal number is among the lowest share `p`."""
    if torch.compiler.is_exporting():  # ONNX knows the error function, not its inverse
        return 0.5 * (1 + torch.erf(z / 2**0.5)) < as_tensor(p).to(z.dtype)
    return z < _quantile(p)


def _quantile(p: Scalar) -> Tensor:
    """Below it lies a share `p` of all standard normal numbers: their tails are fine in every dtype, those of uniform ones are not."""
    return torch.special.ndtri(as_tensor(p).clamp(max=1))
