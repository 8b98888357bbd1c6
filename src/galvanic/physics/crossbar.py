r"""The effective matrix of a crossbar of linear cells on resistive wires, and its derivative.

Cell $(i, j)$ joins row wire $i$ and column wire $j$. With $X$ the voltages across the cells, $R_r$ and $R_c$ the resistances of one row
and of one column wire (`ladder`), every cell obeys

$$ X_{ij} = u_i - \sum_l (R_r)_{jl}\,g_{il} X_{il} - \sum_k (R_c)_{ik}\,g_{kj} X_{kj}, \qquad y_j = \sum_i g_{ij} X_{ij} $$

or $X = (1 + RG)^{-1} E u$, $y = S G X$: a linear map $M = S (G^{-1} + R)^{-1} E$. The rows are met column by column, from the far end: what
lies beyond a column is one matrix, its admittance seen by the rows (block elimination, one dense inverse of the size of the shorter side
a column). $R$ is symmetric, so with $\Lambda = (1 + RG)^{-1} S^T \bar M$

$$ \bar g_{ij} = \sum_k \Lambda_{ijk} X_{ijk}, \qquad
(\bar R_r)_{jl} = -\sum_{ik} (g\Lambda)_{ijk} (gX)_{ilk}, \qquad (\bar R_c)_{ik} = -\sum_{jl} (g\Lambda)_{ijl} (gX)_{kjl} $$
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_DARK = 1e-30  # a conductance that carries nothing, but across which the voltage can be told
_PIECE = 2**24  # elements of the largest intermediate: many small tiles at once, large ones one by one


def ladder(ends: Tensor, size: int) -> Tensor:
    """Voltages along a wire (size, size) per unit current drawn at each of its nodes, both its ends being held at zero volts.

    Args:
        ends: resistance up to the first node, between neighbours, and conductance beyond the last node (0: open).
        size: how many nodes.
    """
    near, segment, far = ends
    from_near = near + segment * torch.arange(size, dtype=ends.dtype, device=ends.device)
    loop = far / (1 + far * from_near[-1])  # 1 / resistance of the wire with both its ends
    return torch.minimum(from_near[:, None], from_near) - loop * from_near[:, None] * from_near


def _inverse(a: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(a))


def _eliminate(g: Tensor, columns: Tensor, ends: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per column its admittance (tiles, rows, rows), the transfer of the row voltages to it from the one before, and the resistance between."""
    eye = torch.eye(g.shape[-1], dtype=g.dtype, device=g.device)
    near, segment, far = ends
    beyond, found = far * eye, []
    for j in reversed(range(g.shape[1])):
        root = g[:, j].sqrt()
        cells = root[:, :, None] * _inverse(eye + root[:, :, None] * columns * root[:, None]) * root[:, None]
        step = segment if j else near
        seen = cells + beyond
        transfer = _inverse(eye + step * seen)
        beyond = seen @ transfer
        found.append((cells, transfer, step))
    return found[::-1]


def _sources(parts: list[tuple[Tensor, Tensor, Tensor]], last: Tensor, driven: Tensor | None) -> list[Tensor]:
    """Per column the current (tiles, rows, vectors) that sources at the far ends and at the columns draw from the rows held at zero."""
    found = []
    for j in reversed(range(len(parts))):
        cells, transfer, _ = parts[j]
        here = last if driven is None else last + cells.sum(-1, keepdim=True) * driven[:, j, None]
        found.append(here)
        last = transfer @ here
    return found[::-1]


def _voltages(parts: list[tuple[Tensor, Tensor, Tensor]], v: Tensor, sources: list[Tensor] | None) -> Iterator[Tensor]:
    """Per column the voltages (tiles, rows, vectors) of the rows, which are driven with `v`."""
    for j, (_, transfer, step) in enumerate(parts):
        v = transfer @ (v if sources is None else v - step * sources[j])
        yield v


def _row_driven(parts: list[tuple[Tensor, Tensor, Tensor]], far: Tensor) -> Iterator[Tensor]:
    """Voltages of the rows at each column, where each row in turn is driven with one volt, at both its ends if the far one is there."""
    eye = torch.eye(parts[0][0].shape[-1], dtype=far.dtype, device=far.device)
    return _voltages(parts, eye, _sources(parts, -far * eye, None) if far else None)


def _matrix(g: Tensor, columns: Tensor, ends: Tensor) -> Tensor:
    parts = _eliminate(g.clamp(min=_DARK), columns, ends)
    return torch.stack([(cells.sum(-2, keepdim=True) @ v)[:, 0] for (cells, *_), v in zip(parts, _row_driven(parts, ends[2]), strict=True)], 1)


def _adjoint(g: Tensor, columns: Tensor, ends: Tensor, grad: Tensor, wires: bool) -> tuple[Tensor, Tensor, Tensor]:
    g = g.clamp(min=_DARK)
    parts = _eliminate(g, columns, ends)
    zero = torch.zeros_like(parts[0][0])
    found, kept = [], []
    pairs = zip(_row_driven(parts, ends[2]), _voltages(parts, zero, _sources(parts, zero, grad)), strict=True)
    for j, (x, back) in enumerate(pairs):
        cells = parts[j][0]
        currents, adjoints = cells @ x, cells @ (back + grad[:, j, None])
        found.append((currents * adjoints).sum(-1) / g[:, j].square())
        if wires:
            kept.append((currents, adjoints))
    if not wires:
        return torch.stack(found, 1), g.new_zeros(len(parts), len(parts)), torch.zeros_like(columns)
    currents, adjoints = (torch.stack(each, 1) for each in zip(*kept, strict=True))  # (tiles, columns, rows, vectors)
    of_rows = -torch.einsum("tjik,tlik->jl", adjoints, currents)
    return torch.stack(found, 1), of_rows, -torch.einsum("tjil,tjkl->ik", adjoints, currents)


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
    return torch.cat([_matrix(piece, columns, row_ends) for piece in tiles.split(_pieces(tiles))]).reshape(g.shape)


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
    of_g, of_rows, of_columns = zip(*(_adjoint(a, columns, row_ends, b, wires) for a, b in pieces), strict=True)
    return torch.cat(of_g).reshape(g.shape), torch.stack(of_rows).sum(0), torch.stack(of_columns).sum(0)


@crossbar_adjoint.register_fake
def _(g: Tensor, rows: Tensor, columns: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return g.new_empty(g.shape), rows.new_empty(rows.shape), columns.new_empty(columns.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wires = any(ctx.needs_input_grad[1:3])
    return *crossbar_adjoint(*ctx.saved_tensors, grad, wires), None, None


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("the second derivative of WireResistance is not there; WireResistanceApproximate has one")


crossbar.register_autograd(_backward, setup_context=_save)
crossbar_adjoint.register_autograd(_refuse)


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
