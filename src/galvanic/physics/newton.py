"""The operating point of non-linear cells on resistive wires, and the linear equations of one Newton step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from galvanic.physics.product import Product

_STEPS = 50
_TOLERANCE = 1e-9  # of the largest input; the caller's own step squares it


def current_of(cell: Product, matrices: Sequence[Tensor], v: Tensor) -> Tensor:
    """Current of every cell at the voltages v across them."""
    terms = [m * f for m, f in zip(matrices, cell.inputs(v), strict=True)]
    return sum(terms[1:], terms[0])


def drop(current: Tensor, wires: Sequence[Tensor]) -> Tensor:
    """Voltage lost in the wires, (..., columns, rows); `wires` are the ladders of a row and of a column, with as many dimensions."""
    return wires[0] @ current + current @ wires[1]


def _conjugate_gradients(rhs: Tensor, slope: Tensor, wires: Sequence[Tensor], accuracy: float) -> Tensor:
    r"""$(1 + R D)^{-1}$ rhs with $D$ the slopes, by way of the symmetric $1 + D^{1/2} R D^{1/2}$."""
    root = slope.sqrt()
    r = p = root * rhs
    x = torch.zeros_like(r)
    square = _dot(r, r)
    enough = square * accuracy**2
    for _ in range(rhs.shape[-1] * rhs.shape[-2]):
        if bool((square <= enough).all()):
            break
        image = p + root * drop(root * p, wires)
        length = square / _dot(p, image).clamp(min=1e-300)  # a vector that is solved stays where it is
        x, r = x + length * p, r - length * image
        square, before = _dot(r, r), square
        p = r + square / before.clamp(min=1e-300) * p
    return rhs - drop(root * x, wires)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1), keepdim=True)


def _newton(cell: Product, u: Tensor, wires: Sequence[Tensor], matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Voltages across the cells and the slopes of their currents there."""
    v = u.expand(torch.broadcast_shapes(u.shape, matrices[0].shape)).clone()
    goal = _TOLERANCE * u.abs().amax()
    for _ in range(_STEPS):
        current, slope, *_ = torch.func.jvp(lambda v: current_of(cell, matrices, v), (v,), (torch.ones_like(v),))
        excess = v + drop(current, wires) - u
        residual = excess.abs().amax()
        if bool(residual <= goal):
            return v, _rising(slope, v)
        v = v - _conjugate_gradients(excess, slope.clamp(min=0), wires, 1e-4)
    raise RuntimeError(
        f"NonlinearCrossbar: {_STEPS} Newton steps left {residual.item():.1e} of full scale unexplained; take smaller wire resistances"
    )


def _rising(slope: Tensor, v: Tensor) -> Tensor:
    if bool((slope < 0).any()):
        where = v.flatten()[slope.expand_as(v).argmin()].item()
        raise ValueError(f"NonlinearCrossbar: the current of a cell falls with its voltage at {where:.3g} of full scale; it has to rise")
    return slope


def _batched(in_dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Every tensor with the dimension of `vmap` in front, so that they still broadcast."""
    return [x.unsqueeze(0) if d is None else x.movedim(d, 0) for x, d in zip(tensors, in_dims, strict=True)]


class OperatingPoint(Function):
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
        return OperatingPoint.apply(cell, *_batched(in_dims[1:], tensors)), (0, 0)


class Solve(Function):
    r"""$(1 + R D)^{-1}$ rhs; the derivative is that to rhs."""

    @staticmethod
    def forward(rhs: Tensor, slope: Tensor, *wires: Tensor) -> Tensor:
        return _conjugate_gradients(rhs, slope, wires, 1e-12)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return SolveAdjoint.apply(grad, *ctx.saved_tensors), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        return Solve.apply(*_batched(in_dims, tensors)), 0


class SolveAdjoint(Function):
    r"""$(1 + D R)^{-1}$ rhs, whose own derivative is refused: it would leave out that $D$ moves with the solution."""

    @staticmethod
    def forward(rhs: Tensor, slope: Tensor, *wires: Tensor) -> Tensor:
        return rhs - slope * _conjugate_gradients(drop(rhs, wires), slope, wires, 1e-12)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise NotImplementedError("the second derivative of NonlinearCrossbar is not there")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        return SolveAdjoint.apply(*_batched(in_dims, tensors)), 0
