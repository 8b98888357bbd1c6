r"""Wires that have resistance: the voltage of a row falls along it, that of a column rises towards its far end (IR drop)."""

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from galvanic.physics.crossbar import Crossbar
from galvanic.physics.network import ladder
from galvanic.physics.product import Product
from galvanic.physics.value import NonNegative, Positive, Scalar, as_tensor

_SHORT = 1e-12  # what the far end of a wire driven from both sides has at least, in units of `on_ohm`: its conductance is finite


@dataclass(frozen=True, kw_only=True)
class Wires(Product, ABC):
    r"""The resistances of a crossbar's wires.

    ::

        u_0 --driver--o--row--o--row--o- - -driver-- u_0       (the far driver: two_sided_rows)
                      |col    |col    |col
        u_1 --driver--o--row--o--row--o- - -driver-- u_1
                      |sense  |sense  |sense
                     y_0     y_1     y_2                       (virtual grounds; also at the top: two_sided_columns)

    Every crossing is a cell between its row wire and its column wire. Inputs come from the left, next to the first column; currents leave
    at the bottom, next to the last row.

    Args:
        on_ohm: resistance of a cell at $g = 1$.
        row_ohm: of a row wire between two neighbouring cells.
        column_ohm: of a column wire between two neighbouring cells.
        driver_ohm: between a driver and its end of a row.
        sense_ohm: between an end of a column and its amplifier.
        two_sided_rows: whether every input drives both ends of its row.
        two_sided_columns: whether the current is taken, and added up, at both ends of a column.
    """

    local: ClassVar[bool] = False

    on_ohm: Positive
    row_ohm: NonNegative = 0.0
    column_ohm: NonNegative = 0.0
    driver_ohm: NonNegative = 0.0
    sense_ohm: NonNegative = 0.0
    two_sided_rows: bool = False
    two_sided_columns: bool = False

    @property
    def ideal(self) -> bool:
        """Whether no wire has a resistance; one that is a tensor counts, since it may be fitted."""
        return not any(isinstance(x, Tensor) or x > 0 for x in (self.row_ohm, self.column_ohm, self.driver_ohm, self.sense_ohm))

    def ends(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What makes a row and a column wire (see `ladder`), in units of a cell; a column's nearest row is its last."""
        rows = self._end(self.driver_ohm, self.row_ohm, self.two_sided_rows, device)
        return rows, self._end(self.sense_ohm, self.column_ohm, self.two_sided_columns, device)

    def _end(self, near_ohm: Scalar, segment_ohm: Scalar, both: bool, device: torch.device) -> Tensor:
        on, near, segment = (as_tensor(x).to(device, torch.float64) for x in (self.on_ohm, near_ohm, segment_ohm))
        far = on / (near + _SHORT * on) if both else torch.zeros_like(on)
        return torch.stack([near / on, segment / on, far])


@dataclass(frozen=True, kw_only=True)
class WireResistance(Wires):
    r"""A crossbar of linear cells on resistive wires, solved exactly: still a linear map, $y = M u$.

    $M$ comes out of one elimination of the whole network a write (see `galvanic.physics.network`), in double precision, at a cost of
    columns x rows x the shorter of the two squared. Every read is then a plain product. Differentiable once, to the conductances and to
    the resistances.

    Raises:
        ValueError: a conductance below 0.
    """

    def matrices(self, g: Tensor) -> tuple[Tensor, ...]:
        if self.ideal:
            return (g,)
        rows, columns = self.ends(g.device)
        ladders = ladder(rows, g.shape[-2]), ladder(columns, g.shape[-1])
        m = Crossbar.apply(g.to(torch.float64).flip(-1), *ladders, rows.detach(), columns.detach())
        return (m.flip(-1).to(g.dtype),)


@dataclass(frozen=True, kw_only=True)
class WireResistanceApproximate(Wires):
    r"""Every cell in series with its wires, as all other cells load them:

    $$ M_{ji} = \frac{g_{ij}}{1 + \sum_l (R_r)_{jl}\,g_{il} + \sum_k (R_c)_{ik}\,g_{kj}} $$

    with $R_r$ and $R_c$ the resistances of a row and of a column wire between two of its cells and the drivers or amplifiers.
    Exact to first order in the resistances and for a single cell; two small products a write, plainly differentiable. Against
    `WireResistance`, for conductances uniform in [0.01, 1] of cells of 100 kohm and 1 ohm for every resistance
    (``python benchmarks/wires.py``), relative error of $M$ in the Frobenius norm, beside that of neglecting the wires:

    ======= ============ =======
    size    approximate  neglect
    ======= ============ =======
    32      0.0002 %     0.38 %
    64      0.0036 %     1.5 %
    128     0.053 %      5.9 %
    256     0.66 %       23 %
    ======= ============ =======
    """

    def matrices(self, g: Tensor) -> tuple[Tensor, ...]:
        rows, columns = self.ends(g.device)
        of_rows, of_columns = ladder(rows, g.shape[-2]).to(g.dtype), ladder(columns, g.shape[-1]).flip(0, 1).to(g.dtype)
        return (g / (1 + of_rows @ g + g @ of_columns),)
