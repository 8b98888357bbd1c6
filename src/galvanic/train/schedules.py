"""How strong the noise of training is: over time, and from one chip or example to the next."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Len
from torch import Tensor

from galvanic.physics import Value

Share = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, kw_only=True)
class Schedule(Value, ABC):
    """The noise level, in units of the hardware's, over the steps on chips."""

    @abstractmethod
    def level(self, since: float) -> float:
        r"""Its mean $\mu$ when this share of all steps has been spent on chips."""

    def spread(self, since: float) -> float:
        r"""Its standard deviation $\sigma$ from step to step."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The same level throughout.

    Args:
        at: the level; 0 leaves what is not random: converters, curves.
    """

    at: Annotated[float, Ge(0)] = 1.0

    def level(self, since: float) -> float:
        return self.at


@dataclass(frozen=True, kw_only=True)
class Ramp(Schedule):
    """A straight rise from nothing.

    Args:
        over: share of all steps until it is done.
        to: the level then.
    """

    over: Share
    to: Annotated[float, Ge(0)] = 1.0

    def level(self, since: float) -> float:
        return self.to if self.over == 0 else self.to * min(1.0, since / self.over)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    r"""A rise along half a cosine, $\frac12 (1 - \cos \pi t)$, which begins and ends gently.

    Args:
        over: share of all steps until it is done.
        to: the level then.
    """

    over: Share
    to: Annotated[float, Ge(0)] = 1.0

    def level(self, since: float) -> float:
        return self.to if since >= self.over else self.to * (1 - math.cos(math.pi * since / self.over)) / 2


@dataclass(frozen=True, kw_only=True)
class Grid(Schedule):
    r"""A level $|\eta|$, $\eta \sim \mathcal{N}(\mu(t), \sigma^2(t))$, its moments linear between given times.

    Args:
        shares: of all steps, rising.
        means: $\mu$ there.
        stds: $\sigma$ there; empty for none.

    Raises:
        ValueError: not as many of each; shares that do not rise.
    """

    shares: Annotated[tuple[Share, ...], Len(1)]
    means: Annotated[tuple[Annotated[float, Ge(0)], ...], Len(1)]
    stds: tuple[Annotated[float, Ge(0)], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.means) != len(self.shares) or (self.stds and len(self.stds) != len(self.shares)):
            raise ValueError(f"Grid: {len(self.shares)} shares, {len(self.means)} means, {len(self.stds)} stds: as many of each")
        if any(a >= b for a, b in pairwise(self.shares)):
            raise ValueError(f"Grid.shares = {self.shares}: every one is larger than the one before")

    def level(self, since: float) -> float:
        return _between(self.shares, self.means, since)

    def spread(self, since: float) -> float:
        return _between(self.shares, self.stds, since) if self.stds else 0.0


def _between(xs: tuple[float, ...], ys: tuple[float, ...], x: float) -> float:
    if x <= xs[0]:
        return ys[0]
    for (a, b), (low, high) in zip(pairwise(xs), pairwise(ys), strict=True):
        if x <= b:
            return low + (high - low) * (x - a) / (b - a)
    return ys[-1]


@dataclass(frozen=True, kw_only=True)
class Fluctuation(Value):
    r"""A level that is another for each example or step (variance-aware noisy training), in units of the schedule's.

    It is $|\alpha + \theta\,\epsilon|$, $\epsilon \sim \mathcal{N}(0, 1)$, or, one-sided, $\alpha + \theta\,|\epsilon|$. (The sign of a
    noise level changes nothing, since noise is symmetric.)

    Args:
        alpha: $\alpha$.
        theta: $\theta$, a standard deviation.
        one_sided: whether levels are never below $\alpha$.
        per: ``example``: on what is drawn at its reads, as published; ``step``: on all noise of the chip.

    Reference:
        Wang et al., Variance-aware noisy training, arXiv 2503.16183, 2025.
    """

    alpha: Annotated[float, Ge(0)] = 1.0
    theta: Annotated[float, Gt(0)]
    one_sided: bool = False
    per: Literal["example", "step"] = "example"

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Levels, (n,), from torch's global stream unless another is given."""
        e = torch.randn(n, generator=generator)
        return self.alpha + self.theta * e.abs() if self.one_sided else (self.alpha + self.theta * e).abs()
