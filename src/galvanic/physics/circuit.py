"""A crossbar whose cells are non-linear and whose wires have resistance: solved for every input vector."""

from dataclasses import dataclass

import torch
from torch import Tensor

from galvanic.physics.network import ladder
from galvanic.physics.newton import OperatingPoint, Solve, current_of, drop
from galvanic.physics.product import Circuit, Product
from galvanic.physics.wires import WireResistance


@dataclass(frozen=True, kw_only=True)
class NonlinearCrossbar(Circuit):
    r"""Non-linear cells on resistive wires. The voltages $v$ across the cells of a tile solve

    $$ v_{ij} = u_i - \sum_l (R_r)_{jl}\,I_{il}(v_{il}) - \sum_k (R_c)_{ik}\,I_{kj}(v_{kj}), \qquad y_j = \sum_i I_{ij}(v_{ij}) $$

    by Newton's method in double precision, all vectors at once; a step is solved by conjugate gradients, since wires are a small
    perturbation of the identity. Differentiable once, to the inputs, the conductances and all parameters, by the implicit function
    theorem: the derivative of the last Newton step is that of the solution. One tensor of (devices, vectors, columns, rows) is held a
    dozen times over. A compiled graph breaks around the solution.

    Args:
        wires: their resistances.
        cell: how a cell conducts; its current rises with its voltage.

    Raises:
        ValueError: a cell that is not local, or whose current falls with its voltage at the operating point.
        RuntimeError: Newton's method did not converge.
    """

    wires: WireResistance
    cell: Product

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cell.local:
            raise ValueError(f"NonlinearCrossbar.cell is {type(self.cell).__name__}, which has wires of its own; a SinhCell or the like")

    @torch._disable_dynamo  # type: ignore[attr-defined]  # imports the compiler in the first call, not here
    def currents(self, u: Tensor, g: Tensor) -> Tensor:
        vectors = [1] * (u.ndim - 1)
        wide = g.to(torch.float64).unflatten(0, (-1, *vectors))  # (devices, ..., columns, rows)
        inputs = u.to(torch.float64)[None, ..., None, :]
        ends = self.wires.ends(g.device)
        wires = tuple(r.view(1, *vectors, *r.shape) for r in (ladder(ends[0], g.shape[-2]), ladder(ends[1], g.shape[-1]).flip(0, 1)))
        matrices = self.cell.matrices(wide)
        v, slope = OperatingPoint.apply(self.cell, inputs, *wires, *matrices)
        excess = v + drop(current_of(self.cell, matrices, v), wires) - inputs
        v = v - Solve.apply(excess, slope, *wires)
        return current_of(self.cell, matrices, v).sum(-1).to(torch.promote_types(u.dtype, g.dtype))
