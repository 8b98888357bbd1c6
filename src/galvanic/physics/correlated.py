"""Noise that neighbours share: along the lines of an array, or in time."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from galvanic.physics.base import Context, Nonideality, Per
from galvanic.physics.value import NonNegative, Positive, Scalar, as_tensor


@dataclass(frozen=True, kw_only=True)
class Correlated(Nonideality):
    r"""Gaussian noise of exponential correlation, $y_i = x_i + \sigma z_i$ with $\langle z_i z_j \rangle = e^{-|i - j| / \ell}$.

    Along rows or columns, a signal's lines are its last axis; cells are correlated from row to row (within a column) or from column to
    column. In time, each line of a signal is correlated from one vector to the next, over all leading axes in order; lines are independent,
    and every product begins anew, in the stationary state.

    The correlation is in the draw, so no gradient reaches $\ell$.

    Args:
        std: $\sigma$, in units of full scale.
        length: $\ell$, in lines, or in vectors where it is time.
        along: over what the noise is correlated.

    Raises:
        ValueError: noise in time that is drawn less often than at every read.

    Reference:
        Uhlenbeck and Ornstein, On the theory of the Brownian motion, Phys. Rev. 36, 1930.
    """

    std: NonNegative
    length: Positive
    along: Literal["rows", "columns", "time"] = "rows"
    per: Per = "read"
    lines: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.along == "time" and self.per != "read":
            raise ValueError(f"Correlated.per = {self.per!r}: noise along time is drawn at every read, per='read'")

    def draw(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Standard normal numbers, correlated; of cells where three axes (devices, columns, rows) are drawn less often than every read."""
        white = super().draw(shape, generator, device=device, dtype=dtype)
        if self.along == "time":
            return exponential(white.reshape(-1, *shape[-1:]), self.length, axis=0).reshape(shape)
        cells = self.per != "read" and len(shape) == 3
        return exponential(white, self.length, axis=-2 if cells and self.along == "columns" else -1)

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        return x if z is None else x + at.noise_level * self.std * z


@torch.no_grad()
def exponential(white: Tensor, length: Scalar, *, axis: int) -> Tensor:
    r"""White normal numbers made into a stationary process of unit variance along an axis: $z_0 = \epsilon_0$,
    $z_i = \rho z_{i-1} + \sqrt{1 - \rho^2}\,\epsilon_i$ with $\rho = e^{-1/\ell}$."""
    step = 1 / as_tensor(length)
    z = white.to(torch.promote_types(white.dtype, torch.float32)).movedim(axis, -1)
    z = torch.cat([z[..., :1], z[..., 1:] * (-torch.expm1(-2 * step)).sqrt()], -1)
    reach = 1
    while reach < z.shape[-1]:  # sums over 1, 2, 4, ... predecessors: as few passes as the number of lines has bits
        z = z + torch.exp(-reach * step) * F.pad(z[..., :-reach], (reach, 0))
        reach *= 2
    return z.movedim(-1, axis).to(white.dtype)
