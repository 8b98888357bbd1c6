"""Modules that hold several matrices (recurrent layers, attention): each matrix is an analog layer of its own."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galvanic.nn.analog import Analog
from galvanic.nn.ranged import Ranged
from galvanic.profile import Profile


class Matrix(Analog):
    """An analog layer that multiplies vectors."""

    def cells(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(0)

    def native(self, cells: Tensor) -> Tensor:
        return cells.squeeze(0)

    def digital(self, x: Tensor, weight: Tensor, *how: Any) -> Tensor:
        return F.linear(x, weight, self.bias)

    def contract(self, u: Tensor, weight: Tensor, *how: Any) -> Tensor:
        return F.linear(u, weight)

    def patches(self, u: Tensor, *how: Any) -> Tensor:
        return u.unsqueeze(-2)  # (..., blocks, rows)


class Transposed(Matrix):
    """An analog layer that multiplies vectors by a weight (in, out)."""

    def layout(self) -> tuple[int, ...]:
        return 1, self.weight.shape[1], self.weight.shape[0]

    def cells(self, weight: Tensor) -> Tensor:
        return weight.T.unsqueeze(0)

    def native(self, cells: Tensor) -> Tensor:
        return cells.squeeze(0).T

    def digital(self, x: Tensor, weight: Tensor, *how: Any) -> Tensor:
        assert self.bias is not None
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], -1)

    def contract(self, u: Tensor, weight: Tensor, *how: Any) -> Tensor:
        return u @ weight


class Projection(Matrix):
    """One matrix of a module that holds several. The parameters stay those of the module: names, ties and checkpoints do not change.

    Args:
        owner: the module that holds the parameters.
        weight: name of its weight, (out, in).
        bias: name of its bias, if it has one.
        part: rows of the weight that belong to this matrix, where several share one parameter.
    """

    def __init__(self, owner: nn.Module, weight: str, bias: str | None, part: slice | None = None) -> None:
        super().__init__()
        self._owner = (owner,)  # in a tuple: a reference, not a child
        self._names, self._part = (weight, bias), part

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        w: Tensor = getattr(self._owner[0], self._names[0])
        return w if self._part is None else w[self._part]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        b: Tensor | None = None if self._names[1] is None else getattr(self._owner[0], self._names[1])
        return b if b is None or self._part is None else b[self._part]

    def layout(self) -> tuple[int, ...]:
        return 1, *self.weight.shape

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        Ranged._apply(self, fn, recurse)  # the draws wait for the weight, which its owner moves after this
        return self

    def extra_repr(self) -> str:
        return f"{self._names[0]}{list(self.weight.shape)}, {super().extra_repr().lstrip(', ')}"


class Composite(nn.Module):
    """A module whose matrices are projections on a chip. It is made from a digital module by `convert`, in place."""

    def matrices(self) -> Iterator[tuple[str, nn.Module, str, str | None, slice | None]]:
        """(name, owner, weight, bias, part) of every matrix."""
        raise NotImplementedError

    def install(self, profile: Profile, name: str) -> None:
        """Make this module, whose class was just changed, an analog one."""
        for short, owner, weight, bias, part in self.matrices():
            projection = Projection(owner, weight, bias, part)
            projection.install(profile, f"{name}.{short}" if name else short)
            self.add_module(short, projection)

    def uninstall(self) -> None:
        """Take the projections away."""
        for short, *_ in list(self.matrices()):
            del self._modules[short]

    def bare(self) -> bool:
        """Whether every matrix is multiplied by as in software, so that the digital module does the work."""
        projections = [m for m in self.children() if isinstance(m, Projection)]
        return all(p._bare and not p.profile.converts("input") and p.observer is None for p in projections)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for projection in self.children():
            if isinstance(projection, Projection):
                projection._follow(fn)  # now that the weight has moved
        return self
