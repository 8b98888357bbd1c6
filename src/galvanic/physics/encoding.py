"""How a weight in [-1, 1] becomes conductances in [0, 1], and how the results of their tiles become that of the weight again."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor

from galvanic.physics.converters import straight_through
from galvanic.physics.value import Value


@dataclass(frozen=True, kw_only=True)
class Encoding(Value, ABC):
    """A linear code of a matrix of weights, (..., columns, rows, ...) with the columns at axis 1.

    `encode` gives conductances. Those whose currents are added before a converter make up a *lane*: `lanes` gives the matrices of the
    lanes, each with converters of its own, and `combine` puts their digital results together. All three are linear, so that
    ``combine(lanes(encode(w)))`` is w, and the combined products of the lanes are the product with w.
    """

    nonnegative: ClassVar[bool] = True
    """Whether the devices are conductances, which no effect takes below zero."""

    @property
    @abstractmethod
    def devices(self) -> int:
        """Devices a weight."""

    @property
    def width(self) -> int:
        """Lanes: converted results a weight."""
        return 1

    @property
    def extra_columns(self) -> int:
        """Columns of the array that belong to no output."""
        return 0

    @abstractmethod
    def encode(self, w: Tensor) -> Tensor:
        """Conductances, (devices, blocks, columns + extra columns, ...), of weights (blocks, columns, ...)."""

    @abstractmethod
    def lanes(self, g: Tensor) -> tuple[Tensor, ...]:
        """The matrix of each lane, (blocks, columns + extra columns, ...)."""

    @abstractmethod
    def lane_variances(self, variance: Tensor) -> tuple[Tensor, ...]:
        """Variance of each lane's matrix, given independent variances of the conductances."""

    def combine(self, results: Sequence[Tensor], axis: int) -> Tensor:
        """The digital combination of the lanes' results, whose columns are at `axis`."""
        return results[0]

    def decode(self, g: Tensor) -> Tensor:
        """The weight these conductances stand for, (blocks, columns, ...)."""
        return self.combine(self.lanes(g), 1)


@dataclass(frozen=True, kw_only=True)
class Direct(Encoding):
    """The signed weight itself, one device each."""

    nonnegative: ClassVar[bool] = False

    @property
    def devices(self) -> int:
        return 1

    def encode(self, w: Tensor) -> Tensor:
        return w.unsqueeze(0)

    def lanes(self, g: Tensor) -> tuple[Tensor, ...]:
        return (g.squeeze(0),)

    def lane_variances(self, variance: Tensor) -> tuple[Tensor, ...]:
        return (variance.squeeze(0),)


@dataclass(frozen=True, kw_only=True)
class DifferentialPair(Encoding):
    r"""Two conductances whose currents are subtracted, $w = (g_+ - g_-) / (1 - g_\mathrm{min})$; one of the two is at $g_\mathrm{min}$.

    Args:
        g_min: smallest conductance, in units of the largest (the inverse on/off ratio).
    """

    g_min: Annotated[float, Ge(0), Lt(1)] = 0.0

    @property
    def devices(self) -> int:
        return 2

    def encode(self, w: Tensor) -> Tensor:
        magnitude = w.abs()
        parts = torch.stack([magnitude + w, magnitude - w]) / 2  # the gradient to w = 0 is 1, which two relu would lose
        return self.g_min + (1 - self.g_min) * parts

    def lanes(self, g: Tensor) -> tuple[Tensor, ...]:
        plus, minus = g.unbind(0)
        return ((plus - minus) / (1 - self.g_min),)

    def lane_variances(self, variance: Tensor) -> tuple[Tensor, ...]:
        return (variance.sum(0) / (1 - self.g_min) ** 2,)


@dataclass(frozen=True, kw_only=True)
class OffsetColumn(Encoding):
    r"""One conductance a weight, and one column of reference devices half-way between the extremes, whose result is subtracted.

    $$ g = g_\mathrm{min} + (1 - g_\mathrm{min}) \frac{1 + w}{2}, \qquad
    y = \frac{2}{1 - g_\mathrm{min}} \Big(\mathcal{A}\big(\sum_i g_i u_i\big) - \mathcal{A}\big(\sum_i g_{\mathrm{ref},i} u_i\big)\Big) $$

    The subtraction is digital: both results went through a converter $\mathcal{A}$; the error of the reference is common to all columns.

    Args:
        g_min: smallest conductance, in units of the largest.

    Reference:
        Shafiee et al., ISAAC: a convolutional neural network accelerator with in-situ analog arithmetic in crossbars, ISCA, 2016.
    """

    g_min: Annotated[float, Ge(0), Lt(1)] = 0.0

    @property
    def devices(self) -> int:
        return 1

    @property
    def extra_columns(self) -> int:
        return 1

    def encode(self, w: Tensor) -> Tensor:
        shifted = torch.cat([w, torch.zeros_like(w[:, :1])], 1)
        return (self.g_min + (1 - self.g_min) * (1 + shifted) / 2).unsqueeze(0)

    def lanes(self, g: Tensor) -> tuple[Tensor, ...]:
        return (g.squeeze(0),)

    def lane_variances(self, variance: Tensor) -> tuple[Tensor, ...]:
        return (variance.squeeze(0),)

    def combine(self, results: Sequence[Tensor], axis: int) -> Tensor:
        y = results[0]
        columns = y.shape[axis] - 1
        return (y.narrow(axis, 0, columns) - y.narrow(axis, columns, 1)) * (2 / (1 - self.g_min))


@dataclass(frozen=True, kw_only=True)
class Parallel(Encoding):
    """Several devices side by side for every one of another code: their conductances are averaged, and so are their errors.

    Args:
        of: the code.
        count: devices in parallel.
    """

    of: Encoding
    count: Annotated[int, Ge(1), Le(64)]

    @property
    def devices(self) -> int:
        return self.count * self.of.devices

    @property
    def width(self) -> int:
        return self.of.width

    @property
    def extra_columns(self) -> int:
        return self.of.extra_columns

    def encode(self, w: Tensor) -> Tensor:
        g = self.of.encode(w)
        return torch.cat([g] * self.count)

    def lanes(self, g: Tensor) -> tuple[Tensor, ...]:
        return self.of.lanes(g.unflatten(0, (self.count, -1)).mean(0))

    def lane_variances(self, variance: Tensor) -> tuple[Tensor, ...]:
        return self.of.lane_variances(variance.unflatten(0, (self.count, -1)).sum(0) / self.count**2)

    def combine(self, results: Sequence[Tensor], axis: int) -> Tensor:
        return self.of.combine(results, axis)


@dataclass(frozen=True, kw_only=True)
class BitSliced(Encoding):
    r"""The digits of the weight's magnitude, each with the weight's sign, in cells of few levels: $w = \sum_s c_s w_s$.

    With $b$ bits a slice and $S$ slices, $|w|$ is rounded to $N / (2^{bS} - 1)$; slice $s$ holds digit $d_s$ of $N$ as
    $w_s = \mathrm{sign}(w)\,d_s / (2^b - 1)$, the most significant one first, and $c_s = 2^{b(S-1-s)} (2^b - 1) / (2^{bS} - 1)$. Every
    slice has its own converters. The gradient is straight-through: every slice passes that of the weight, and $\sum_s c_s = 1$.

    Args:
        of: the code of one slice.
        bits: $b$.
        slices: $S$.

    Reference:
        Shafiee et al., ISAAC: a convolutional neural network accelerator with in-situ analog arithmetic in crossbars, ISCA, 2016.
    """

    of: Encoding = DifferentialPair()
    bits: Annotated[int, Ge(1), Le(8)]
    slices: Annotated[int, Ge(1), Le(16)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits * self.slices > 24:
            raise ValueError(f"BitSliced: {self.bits} bits x {self.slices} slices are more than the 24 that a weight has")

    @property
    def nonnegative(self) -> bool:  # type: ignore[override]
        return self.of.nonnegative

    @property
    def devices(self) -> int:
        return self.slices * self.of.devices

    @property
    def width(self) -> int:
        return self.slices * self.of.width

    @property
    def extra_columns(self) -> int:
        return self.of.extra_columns

    def encode(self, w: Tensor) -> Tensor:
        wide = w if w.dtype == torch.float64 else w.float()  # half precision cannot hold the integer
        n = (wide.abs().clamp(max=1) * (2 ** (self.bits * self.slices) - 1)).round()
        digits = digits_of(n, self.bits, self.slices)
        parts = [straight_through((wide.sign() * d / (2**self.bits - 1)).to(w.dtype), w) for d in digits]
        return torch.cat([self.of.encode(part) for part in parts])

    def lanes(self, g: Tensor) -> tuple[Tensor, ...]:
        return tuple(lane for part in g.chunk(self.slices) for lane in self.of.lanes(part))

    def lane_variances(self, variance: Tensor) -> tuple[Tensor, ...]:
        return tuple(lane for part in variance.chunk(self.slices) for lane in self.of.lane_variances(part))

    def combine(self, results: Sequence[Tensor], axis: int) -> Tensor:
        width = self.of.width
        parts = [self.of.combine(results[s * width : (s + 1) * width], axis) for s in range(self.slices)]
        return combine_digits(parts, self.bits)


def digits_of(n: Tensor, bits: int, count: int) -> list[Tensor]:
    """The digits of whole numbers to the base 2^bits, the most significant first."""
    return [torch.floor(n / 2 ** (bits * (count - 1 - s))) % 2**bits for s in range(count)]


def combine_digits(parts: Sequence[Tensor], bits: int) -> Tensor:
    """The number whose digits, over the largest digit, these are, over the largest number."""
    total = parts[0]
    for part in parts[1:]:
        total = total * 2**bits + part
    return total * ((2**bits - 1) / (2 ** (bits * len(parts)) - 1))
