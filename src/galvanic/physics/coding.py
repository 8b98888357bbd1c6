"""How an input reaches the lines of a tile: whole, bit by bit, or split by its sign; every pass is a read of its own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from galvanic.physics.converters import straight_through
from galvanic.physics.encoding import combine_digits, digits_of
from galvanic.physics.value import Value


@dataclass(frozen=True, kw_only=True)
class InputCoding(Value, ABC):
    """A linear code of the inputs: the digital combination of the passes' products is the product with the input."""

    @abstractmethod
    def passes(self, u: Tensor) -> tuple[Tensor, ...]:
        """What is applied to the lines in each pass, of the shape of `u`, which is in units of full scale."""

    def combine(self, results: Sequence[Tensor]) -> Tensor:
        """The digital combination of the passes' results."""
        return results[0]


@dataclass(frozen=True, kw_only=True)
class Whole(InputCoding):
    """The input itself, in one pass."""

    def passes(self, u: Tensor) -> tuple[Tensor, ...]:
        return (u,)


@dataclass(frozen=True, kw_only=True)
class BitSerial(InputCoding):
    r"""The digits of the input's magnitude one after another, each with the input's sign, most significant first.

    An input of `bits` bits, sign included, is rounded to the levels of ``Quantize(bits=bits)``; with $k$ bits a pass there are
    $(b - 1) / k$ passes, each of one digit over $2^k - 1$. Every pass is converted, then shifted and added digitally. The gradient is
    straight-through: every pass passes that of the input.

    Args:
        bits: $b$, with the sign.
        per_pass: $k$.

    Raises:
        ValueError: magnitude bits that do not divide into the passes.

    Reference:
        Shafiee et al., ISAAC: a convolutional neural network accelerator with in-situ analog arithmetic in crossbars, ISCA, 2016.
    """

    bits: Annotated[int, Ge(2), Le(25)]
    per_pass: Annotated[int, Ge(1), Le(24)] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.bits - 1) % self.per_pass:
            raise ValueError(f"BitSerial: {self.bits - 1} magnitude bits do not divide into passes of {self.per_pass}")

    def passes(self, u: Tensor) -> tuple[Tensor, ...]:
        wide = u if u.dtype == torch.float64 else u.float()  # half precision cannot hold the integer
        n = (wide.abs().clamp(max=1) * (2 ** (self.bits - 1) - 1)).round()
        digits = digits_of(n, self.per_pass, (self.bits - 1) // self.per_pass)
        return tuple(straight_through((wide.sign() * d / (2**self.per_pass - 1)).to(u.dtype), u.clamp(-1, 1)) for d in digits)

    def combine(self, results: Sequence[Tensor]) -> Tensor:
        return combine_digits(results, self.per_pass)


@dataclass(frozen=True, kw_only=True)
class SignSplit(InputCoding):
    """Positive inputs in one pass, the magnitudes of negative ones in another, for drivers of one polarity; results are subtracted."""

    def passes(self, u: Tensor) -> tuple[Tensor, ...]:
        magnitude = u.abs()
        return ((magnitude + u) / 2, (magnitude - u) / 2)

    def combine(self, results: Sequence[Tensor]) -> Tensor:
        return results[0] - results[1]
