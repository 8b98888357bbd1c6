"""Cells whose current is not proportional to their voltage, on ideal wires: sums of plain products."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from galvanic.physics.curves import Curve, evaluate
from galvanic.physics.product import Product
from galvanic.physics.value import NonNegative, Scalar, as_tensor


@dataclass(frozen=True, kw_only=True)
class SinhCell(Product):
    r"""A cell that conducts by tunnelling, $I = g \sinh(\kappa u) / \sinh(\kappa)$: $g$ at full scale, less than its share below it.

    Args:
        kappa: $\kappa$, full scale over the voltage at which the current bends; 0 is Kirchhoff's law.
    """

    lumps: ClassVar[bool] = True

    kappa: NonNegative

    def matrices(self, g: Tensor) -> tuple[Tensor, ...]:
        return (g,)

    def inputs(self, u: Tensor) -> tuple[Tensor, ...]:
        kappa = as_tensor(self.kappa).to(u)
        return (u * _sinh_over(kappa * u) / _sinh_over(kappa),)


def _sinh_over(x: Tensor) -> Tensor:
    """sinh(x) / x, whose derivative at 0 is 0 and not 0 / 0."""
    small = x.abs() < 0.01
    square = x.square()
    return torch.where(small, 1 + square / 6 * (1 + square / 20 * (1 + square / 42)), torch.sinh(x) / torch.where(small, 1.0, x))


@dataclass(frozen=True, kw_only=True)
class PolynomialCell(Product):
    r"""A cell whose current is a polynomial of its voltage, $I = g \sum_{k \ge 1} c_k(g)\,u^k$.

    Constant coefficients shape the input and cost nothing more; each one that depends on the conductance is a product of its own. Where
    a fit in volts is $I = G \sum_k a_k V^k$ and full scale is $v$ volts, $c_k = a_k v^{k-1}$.

    Args:
        coefficients: $c_1, c_2, \dots$, numbers or curves of $g$ in units of the largest.

    Raises:
        ValueError: no coefficient.
    """

    coefficients: tuple[Scalar | Curve, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.coefficients:
            raise ValueError("PolynomialCell.coefficients is empty; (1.0,) is Kirchhoff's law")

    def matrices(self, g: Tensor) -> tuple[Tensor, ...]:
        curved = tuple(g * evaluate(c, g) for c in self.coefficients if isinstance(c, Curve))
        return (g, *curved) if len(curved) < len(self.coefficients) else curved

    def inputs(self, u: Tensor) -> tuple[Tensor, ...]:
        curved = tuple(u**k for k, c in enumerate(self.coefficients, start=1) if isinstance(c, Curve))
        return (self._constant(u), *curved) if len(curved) < len(self.coefficients) else curved

    def _constant(self, u: Tensor) -> Tensor:
        total = torch.zeros_like(u)
        for c in reversed(self.coefficients):  # Horner
            total = total * u + (0.0 if isinstance(c, Curve) else c)
        return total * u
