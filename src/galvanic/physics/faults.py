"""Devices that do not work."""

from dataclasses import dataclass

import torch
from torch import Tensor

from galvanic.physics.base import Context, Nonideality, Per
from galvanic.physics.value import Fraction, Scalar


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

    def draw(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Uniform on [0, 1)."""
        return torch.rand(shape, generator=generator, device=device, dtype=dtype)

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        if z is None:
            return x
        x = torch.where(z < at.noise_level * self.low_fraction, self.low, x)
        return torch.where(z >= 1 - at.noise_level * self.high_fraction, self.high, x)
