"""Curved transfer characteristics."""

from dataclasses import dataclass

from torch import Tensor

from galvanic.physics.base import Context, Nonideality
from galvanic.physics.value import Scalar


@dataclass(frozen=True, kw_only=True)
class Nonlinearity(Nonideality):
    r"""Weak static non-linearity, $y = x + a_2 x^2 + a_3 x^3$.

    A sine of full scale comes out with second and third harmonics of relative amplitude $a_2 / 2$ and $a_3 / 4$ (to first order).

    Args:
        second: $a_2$.
        third: $a_3$; negative where large signals are compressed.
    """

    second: Scalar = 0.0
    third: Scalar = 0.0

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        return x * (1 + x * (self.second + self.third * x))
