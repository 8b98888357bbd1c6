"""The effective matrix of a crossbar as an operator of PyTorch: differentiable, and opaque to `vmap` and the compiler."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from galvanic.physics.network import adjoint, matrix

_PIECE = 2**24  # elements of the largest intermediate: many small tiles at once, large ones one by one


def _pieces(g: Tensor) -> int:
    return max(1, _PIECE // (g[0].numel() * g.shape[-1]))


@torch.library.custom_op("galvanic::crossbar", mutates_args=())
def crossbar(g: Tensor, rows: Tensor, columns: Tensor, row_ends: Tensor, column_ends: Tensor) -> Tensor:
    """The effective matrix, of the shape of `g`.

    Args:
        g: conductances (..., columns, rows), float64; the first column is next to the drivers, the first row next to the amplifiers.
        rows: ladder of a row wire, (columns, columns); only its derivative is asked for.
        columns: ladder of a column wire, (rows, rows).
        row_ends: what `rows` was made of.
        column_ends: what `columns` was made of.

    Raises:
        ValueError: a conductance below 0, or NaN.
    """
    if not bool((g >= 0).all()):
        worst = g.min().item()
        raise ValueError(f"a crossbar with wires has no conductance of {worst:.3g}; encode signed weights, e.g. with DifferentialPair()")
    if g.shape[-1] > g.shape[-2]:  # by reciprocity: drive the columns, sense the rows
        return crossbar(g.mT, columns, rows, column_ends, row_ends).mT.contiguous()
    tiles = g.reshape(-1, *g.shape[-2:])
    return torch.cat([matrix(piece, columns, row_ends) for piece in tiles.split(_pieces(tiles))]).reshape(g.shape)


@crossbar.register_fake
def _(g: Tensor, *_: Tensor) -> Tensor:
    return g.new_empty(g.shape)


@torch.library.custom_op("galvanic::crossbar_adjoint", mutates_args=())
def crossbar_adjoint(
    g: Tensor, rows: Tensor, columns: Tensor, row_ends: Tensor, column_ends: Tensor, grad: Tensor, wires: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to g and, if asked for, to rows and columns, for a gradient `grad` to the effective matrix."""
    if g.shape[-1] > g.shape[-2]:
        of_g, of_columns, of_rows = crossbar_adjoint(g.mT, columns, rows, column_ends, row_ends, grad.mT, wires)
        return of_g.mT.contiguous(), of_rows, of_columns
    tiles, grads = g.reshape(-1, *g.shape[-2:]), grad.reshape(-1, *g.shape[-2:])
    pieces = zip(*(x.split(_pieces(tiles)) for x in (tiles, grads)), strict=True)
    of_g, of_rows, of_columns = zip(*(adjoint(a, columns, row_ends, b, wires) for a, b in pieces), strict=True)
    return torch.cat(of_g).reshape(g.shape), torch.stack(of_rows).sum(0), torch.stack(of_columns).sum(0)


@crossbar_adjoint.register_fake
def _(g: Tensor, rows: Tensor, columns: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return g.new_empty(g.shape), rows.new_empty(rows.shape), columns.new_empty(columns.shape)


def _loop(op: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for `vmap`: one after another. Many tiles in one call are as fast, and are what the leading dimensions of `g` are for."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        each = [op(*(x if d is None else x.select(d, k) for x, d in zip(args, in_dims, strict=True))) for k in range(info.batch_size)]
        if isinstance(each[0], Tensor):
            return torch.stack(each), 0
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True)), (0,) * len(each[0])

    return rule


crossbar.register_vmap(_loop(crossbar))
crossbar_adjoint.register_vmap(_loop(crossbar_adjoint))


class Crossbar(Function):
    """`crossbar` with its gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, rows: Tensor, columns: Tensor, row_ends: Tensor, column_ends: Tensor) -> Tensor:
        return crossbar(g, rows, columns, row_ends, column_ends)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return *CrossbarAdjoint.apply(*ctx.saved_tensors, grad, any(ctx.needs_input_grad[1:3])), None, None


class CrossbarAdjoint(Function):
    """`crossbar_adjoint`, whose own gradient is refused."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        g: Tensor, rows: Tensor, columns: Tensor, row_ends: Tensor, column_ends: Tensor, grad: Tensor, wires: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        return crossbar_adjoint(g, rows, columns, row_ends, column_ends, grad, wires)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("the second derivative of WireResistance is not there; WireResistanceApproximate has one")
