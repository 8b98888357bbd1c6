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

from collections.abc import Iterator

import torch
from torch import Tensor

_DARK = 1e-30  # a conductance that carries nothing, but across which the voltage can be told

Parts = list[tuple[Tensor, Tensor, Tensor]]
"""Per column: its admittance (tiles, rows, rows), the transfer of row voltages from the one before, and the resistance between them."""


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


def _eliminate(g: Tensor, columns: Tensor, ends: Tensor) -> Parts:
    """What the rows see of each column and of all beyond it."""
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


def _sources(parts: Parts, last: Tensor, driven: Tensor | None) -> list[Tensor]:
    """Per column the current (tiles, rows, vectors) that sources at the far ends and at the columns draw from the rows held at zero."""
    found = []
    for j in reversed(range(len(parts))):
        cells, transfer, _ = parts[j]
        here = last if driven is None else last + cells.sum(-1, keepdim=True) * driven[:, j, None]
        found.append(here)
        last = transfer @ here
    return found[::-1]


def _voltages(parts: Parts, v: Tensor, sources: list[Tensor] | None) -> Iterator[Tensor]:
    """Per column the voltages (tiles, rows, vectors) of the rows, which are driven with `v`."""
    for j, (_, transfer, step) in enumerate(parts):
        v = transfer @ (v if sources is None else v - step * sources[j])
        yield v


def _row_driven(parts: Parts, far: Tensor) -> Iterator[Tensor]:
    """Voltages of the rows at each column, where each row in turn is driven with one volt, at both its ends if the far one is there."""
    eye = torch.eye(parts[0][0].shape[-1], dtype=far.dtype, device=far.device)
    return _voltages(parts, eye, _sources(parts, -far * eye, None) if far else None)


def matrix(g: Tensor, columns: Tensor, ends: Tensor) -> Tensor:
    """The effective matrices of tiles (tiles, columns, rows), the column ladder and the row ends being given."""
    parts = _eliminate(g.clamp(min=_DARK), columns, ends)
    return torch.stack(
        [(cells.sum(-2, keepdim=True) @ v)[:, 0] for (cells, *_), v in zip(parts, _row_driven(parts, ends[2]), strict=True)], 1
    )


def adjoint(g: Tensor, columns: Tensor, ends: Tensor, grad: Tensor, wires: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to g, to the row ladder and to the column ladder (zeros unless `wires`), for a gradient to `matrix`."""
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
