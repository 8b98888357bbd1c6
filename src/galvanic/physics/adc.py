"""Analog-to-digital converters as circuits: what their parts do to the code."""

from abc import abstractmethod
from dataclasses import dataclass
from math import sqrt
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from galvanic.physics.base import Context, Nonideality, Per
from galvanic.physics.converters import straight_through
from galvanic.physics.value import NonNegative, Positive, as_tensor


@dataclass(frozen=True, kw_only=True)
class Converter(Nonideality):
    r"""A converter that finds the sign of its input, then the code of the magnitude, with the levels of `Quantize`.

    `Quantize` with signed bits *is* the ideal sign-magnitude converter (unless in two's complement), and so are these when all their parts
    are ideal; only an input halfway between two codes, where `Quantize` rounds to the even one, goes to the larger. Their gradient is the
    same straight-through one, that of the formula without the search; it does not reach what disturbs the search alone.

    Args:
        bits: resolution $b$; of a signed converter one of them is the sign.
        signed: whether negative values are represented.
        full_scale: largest value represented, in units of the layer's range.
        offset_std: spread of the comparator's offset over converters, in units of the layer's range.

    Raises:
        ValueError: one signed bit.
    """

    bits: Annotated[int, Ge(1), Le(16)]
    signed: bool = True
    full_scale: Positive = 1.0
    offset_std: NonNegative = 0.0
    per: Per = "chip"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top == 0:
            name = type(self).__name__
            raise ValueError(f"{name}.bits = 1: a signed converter with a level at zero needs 2 bits or more; or signed=False")

    @property
    def top(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - self.signed) - 1

    @abstractmethod
    def code(self, m: Tensor, z: Tensor | None, at: Context) -> Tensor:
        """The code of a magnitude `m` in units of the step; `z` without the comparator's offset."""

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        step = self.full_scale / self.top
        v = x / step if z is None else x / step + at.noise_level * self.offset_std / step * z[0]
        low, high = -self.top if self.signed else 0, self.top
        within = v.clamp(low, high)
        code = within.sign() * self.code(within.abs(), None if z is None else z[1:], at)
        return straight_through(code, v.clamp(low - 0.5, high + 0.5)) * step


@dataclass(frozen=True, kw_only=True)
class SAR(Converter):
    r"""A successive-approximation converter, one a line: a binary search against a divider of mismatched capacitors.

    Bit $k$ is kept where the input reaches the level tried, $|v| \ge (2^n - 1) \sum_j b_j C_j / \sum_j C_j - 1/2$, from the largest of the
    $n$ capacitors down. $C_k = 2^k (1 + \sigma\,2^{-k/2} z_k)$ is made of $2^k$ units; their sum sets the full scale.

    Args:
        capacitor_std: $\sigma$, relative spread of a unit capacitor.

    Reference:
        McCreary and Gray, All-MOS charge redistribution analog-to-digital conversion techniques, IEEE J. Solid-State Circuits 10, 1975.
    """

    capacitor_std: NonNegative = 0.0

    @property
    def stacked(self) -> int:
        """1 + n: the comparator, then the capacitors from the smallest."""
        return 1 + self.bits - self.signed

    def code(self, m: Tensor, z: Tensor | None, at: Context) -> Tensor:
        units = [2**k for k in range(self.bits - self.signed)]
        levels = [float(u) * torch.ones_like(m) for u in units]
        if z is not None:
            sizes = [u + at.noise_level * self.capacitor_std * sqrt(u) * z_k for u, z_k in zip(units, z, strict=True)]
            levels = [self.top * size / sum(sizes) for size in sizes]
        reached, code = torch.zeros_like(m), torch.zeros_like(m)
        for unit, level in zip(reversed(units), reversed(levels), strict=True):
            kept = m >= reached + level - 0.5
            reached, code = torch.where(kept, reached + level, reached), torch.where(kept, code + unit, code)
        return code


@dataclass(frozen=True, kw_only=True)
class Ramp(Converter):
    r"""Converters that count until a common ramp has passed their input, which it does at $c - 1/2 + \mathrm{INL}(c)$ for code $c$.

    The integral non-linearity is a Brownian bridge over the codes, what independent errors of the steps add up to when both ends are
    trimmed; its spread is largest, $\sigma$, in the middle. All lines and tiles of a layer share the ramp, each has its own comparator;
    a signed one meets the same ramp for both signs.

    Args:
        inl_std: $\sigma$, in units of the layer's range.
    """

    inl_std: NonNegative = 0.0

    def draw(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        r"""Standard normal numbers stacked, (1 + codes, \*shape): of comparators, then of the steps of the ramp, alike for all lines."""
        comparator = super().draw((1, *shape), generator, device=device, dtype=dtype)
        steps = super().draw((self.top, *[1] * len(shape)), generator, device=device, dtype=dtype)
        return torch.cat([comparator, steps.expand(self.top, *shape)])

    def code(self, m: Tensor, z: Tensor | None, at: Context) -> Tensor:
        c = torch.arange(1, self.top + 1, device=m.device, dtype=m.dtype)
        crossing = c - 0.5
        if z is not None:
            walk = z.reshape(self.top, -1)[:, 0].cumsum(0) / sqrt(self.top)
            bridge = 2 * (walk - c / self.top * walk[-1])  # of standard deviation 1 in the middle
            size = as_tensor(at.noise_level * self.inl_std * self.top / self.full_scale).to(m.dtype)
            crossing = crossing + size.flatten(1) * bridge if size.ndim else crossing + size * bridge  # each example may have its own
        first = crossing.detach().cummax(-1).values  # where the ramp falls back, counting has stopped before
        among = m.detach() if first.ndim == 1 else m.detach().flatten(1)
        return torch.searchsorted(first, among.contiguous(), right=True).view(m.shape).to(m.dtype)
