"""A crossbar whose cells are non-linear and whose wires have resistance: solved for every input vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from galvanic.physics.crossbar import ladder
from galvanic.physics.product import Circuit, Product
from galvanic.physics.wires import WireResistance

_STEPS = 50
_TOLERANCE = 1e-9  # of the largest input; one more step follows, which squares it


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

    @torch.compiler.disable
    def currents(self, u: Tensor, g: Tensor) -> Tensor:
        vectors = [1] * (u.ndim - 1)
        wide = g.to(torch.float64).unflatten(0, (-1, *vectors))  # (devices, ..., columns, rows)
        inputs = u.to(torch.float64)[None, ..., None, :]
        ends = self.wires.ends(g.device)
        wires = tuple(
            r.view(1, *vectors, *r.shape) for r in (ladder(ends[0], g.shape[-2]), ladder(ends[1], g.shape[-1]).flip(0, 1))
        )
        matrices = self.cell.matrices(wide)
        v, slope = _OperatingPoint.apply(self.cell, inputs, *wires, *matrices)
        excess = v + _drop(_current(self.cell, matrices, v), wires) - inputs
        v = v - _Solve.apply(excess, slope, *wires)
        return _current(self.cell, matrices, v).sum(-1).to(torch.promote_types(u.dtype, g.dtype))


Wiring = tuple[Tensor, ...]
"""The ladders of a row and of a column wire, with as many dimensions as the cells."""


def _current(cell: Product, matrices: Sequence[Tensor], v: Tensor) -> Tensor:
    terms = [m * f for m, f in zip(matrices, cell.inputs(v), strict=True)]
    return sum(terms[1:], terms[0])


def _drop(current: Tensor, wires: Wiring) -> Tensor:
    """Voltage lost in the wires, (..., columns, rows)."""
    return wires[0] @ current + current @ wires[1]


def _conjugate_gradients(rhs: Tensor, slope: Tensor, wires: Wiring, accuracy: float) -> Tensor:
    r"""$(1 + R D)^{-1}$ rhs with $D$ the slopes, by way of the symmetric $1 + D^{1/2} R D^{1/2}$."""
    root = slope.sqrt()
    r = p = root * rhs
    x = torch.zeros_like(r)
    square = _dot(r, r)
    enough = square * accuracy**2
    for _ in range(rhs.shape[-1] * rhs.shape[-2]):
        if bool((square <= enough).all()):
            break
        image = p + root * _drop(root * p, wires)
        length = square / _dot(p, image).clamp(min=1e-300)  # a vector that is solved stays where it is
        x, r = x + length * p, r - length * image
        square, before = _dot(r, r), square
        p = r + square / before.clamp(min=1e-300) * p
    return rhs - _drop(root * x, wires)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1), keepdim=True)


def _newton(cell: Product, u: Tensor, wires: Wiring, matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Voltages across the cells and the slopes of their currents there."""
    v = u.expand(torch.broadcast_shapes(u.shape, matrices[0].shape)).clone()
    goal = _TOLERANCE * u.abs().amax()
    for _ in range(_STEPS):
        current, slope = torch.func.jvp(lambda v: _current(cell, matrices, v), (v,), (torch.ones_like(v),))
        excess = v + _drop(current, wires) - u
        residual = excess.abs().amax()
        if bool(residual <= goal):
            return v, _rising(slope, v)
        v = v - _conjugate_gradients(excess, slope.clamp(min=0), wires, 1e-4)
    raise RuntimeError(f"NonlinearCrossbar: after {_STEPS} Newton steps {residual.item():.1e} of full scale is unexplained; smaller wire resistances would do")


def _rising(slope: Tensor, v: Tensor) -> Tensor:
    if bool((slope < 0).any()):
        where = v.flatten()[slope.expand_as(v).argmin()].item()
        raise ValueError(f"NonlinearCrossbar: the current of a cell falls with its voltage at {where:.3g} of full scale; it has to rise")
    return slope


def _batched(in_dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Every tensor with the dimension of `vmap` in front, so that they still broadcast."""
    return [x.unsqueeze(0) if d is None else x.movedim(d, 0) for x, d in zip(tensors, in_dims, strict=True)]


class _OperatingPoint(Function):
    """Where Newton's method ends; no derivative passes it."""

    @staticmethod
    def forward(cell: Product, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        u, rows, columns, *matrices = tensors
        return _newton(cell, u, (rows, columns), matrices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], cell: Product, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return _OperatingPoint.apply(cell, *_batched(in_dims[1:], tensors)), (0, 0)


class _Solve(Function):
    r"""$(1 + R D)^{-1}$ rhs; the derivative is that to rhs."""

    @staticmethod
    def forward(rhs: Tensor, slope: Tensor, *wires: Tensor) -> Tensor:
        return _conjugate_gradients(rhs, slope, wires, 1e-12)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _SolveAdjoint.apply(grad, *ctx.saved_tensors), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        return _Solve.apply(*_batched(in_dims, tensors)), 0


class _SolveAdjoint(Function):
    r"""$(1 + D R)^{-1}$ rhs, whose own derivative is refused: it would leave out that $D$ moves with the solution."""

    @staticmethod
    def forward(rhs: Tensor, slope: Tensor, *wires: Tensor) -> Tensor:
        return rhs - slope * _conjugate_gradients(_drop(rhs, wires), slope, wires, 1e-12)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise NotImplementedError("the second derivative of NonlinearCrossbar is not there")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        return _SolveAdjoint.apply(*_batched(in_dims, tensors)), 0
