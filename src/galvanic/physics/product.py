"""How a tile combines its inputs with its conductances."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from galvanic.physics.value import Value


@dataclass(frozen=True, kw_only=True)
class Product(Value, ABC):
    r"""How a tile combines inputs $u$ and conductances $g$, $y_j = \sum_k \sum_i M^{(k)}_{ji}(g)\,f_k(u_i)$.

    Where the cells are linear there is one term and $f$ is the identity. The matrices are those of one physical tile and are computed
    once per write; every read is then a plain product.
    """

    local: ClassVar[bool] = True
    """Whether every element of the matrices depends on its own cell alone; otherwise on all cells of the tile (wires)."""

    lumps: ClassVar[bool] = False
    r"""Whether independent noise of cells is output noise of variance $\sum_i f(u_i)^2 \sigma_i^2$: one term, and a matrix that is `g`."""

    @property
    def curved(self) -> bool:
        """Whether it depends on the full scale of the inputs."""
        return type(self).inputs is not Product.inputs

    @abstractmethod
    def matrices(self, g: Tensor) -> tuple[Tensor, ...]:
        """$M^{(k)}$, each of the shape of `g`: (..., columns, rows) of one tile, or any shape where the product is `local`."""

    def inputs(self, u: Tensor) -> tuple[Tensor, ...]:
        """$f_k(u)$, each of the shape of `u`, which is in units of full scale."""
        return (u,)


@dataclass(frozen=True, kw_only=True)
class Kirchhoff(Product):
    """Currents add up on ideal wires, $y = G u$."""

    lumps: ClassVar[bool] = True

    def matrices(self, g: Tensor) -> tuple[Tensor, ...]:
        return (g,)


class Circuit(Product):
    """A tile that is solved anew for every vector, since non-linear cells and wires act on one another."""

    local: ClassVar[bool] = False

    @property
    def curved(self) -> bool:
        return True

    def matrices(self, g: Tensor) -> tuple[Tensor, ...]:
        return (g,)

    @abstractmethod
    def currents(self, u: Tensor, g: Tensor) -> Tensor:
        """Column currents (devices, ..., columns) in units of one cell, for inputs (..., rows) and cells (devices, columns, rows)."""
