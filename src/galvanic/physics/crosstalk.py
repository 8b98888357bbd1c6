"""Crosstalk between neighbouring lines."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from galvanic.physics.base import Context, Nonideality
from galvanic.physics.curves import Curve
from galvanic.physics.value import Scalar, as_tensor


@dataclass(frozen=True, kw_only=True)
class Crosstalk(Nonideality):
    r"""Coupling of a line to its neighbours, $y_i = x_i + \sum_{d \ge 1} \kappa_d\,(x_{i-d} + x_{i+d})$.

    Beyond the edges there is nothing. Of a signal the lines are its last axis; of the cells of a layer they are the rows (each disturbed
    by the rows beside it) or the columns.

    Args:
        kappa: $\kappa_1, \kappa_2, \dots$ (a number: nearest neighbours), or a curve of the distance $d$.
        along: which lines of the cells are neighbours; of no account for signals.
    """

    kappa: Scalar | tuple[Scalar, ...] | Curve
    along: Literal["rows", "columns"] = "rows"
    lines: ClassVar[bool] = True

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        axis = -2 if self.along == "columns" and at.target is not None else -1  # only cells have a target
        x = x.movedim(axis, -1)
        return (x + x @ self.coupling(x.shape[-1], x.device).to(x.dtype)).movedim(-1, axis)

    def coupling(self, lines: int, device: torch.device | None = None) -> Tensor:
        r"""$\kappa_{|i-j|}$ with a diagonal of zeros, (lines, lines)."""
        place = torch.arange(lines, device=device)
        zero = torch.zeros(1, dtype=torch.float64, device=device)
        by_distance = torch.cat([zero, self._kappa(place[1:].to(zero)).to(zero), zero.expand(lines)])
        return by_distance[(place[:, None] - place).abs()]

    def _kappa(self, distance: Tensor) -> Tensor:
        if isinstance(self.kappa, Curve):
            return self.kappa(distance)
        return torch.stack([as_tensor(k).to(distance) for k in (self.kappa if isinstance(self.kappa, tuple) else (self.kappa,))])
