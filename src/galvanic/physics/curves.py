"""Parameters that depend on the state of the device: functions of a conductance x in units of full scale."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from galvanic.physics.value import Positive, Scalar, Value


@dataclass(frozen=True, kw_only=True)
class Curve(Value, ABC):
    """A function of the conductance x >= 0, differentiable, finite at x = 0."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Value at `x`, of its shape."""


@dataclass(frozen=True, kw_only=True)
class Polynomial(Curve):
    r"""$f(x) = \frac{1}{s} \sum_k c_k x^k$.

    Args:
        coefficients: $c_0, c_1, \dots$, lowest power first.
        full_scale: $s$; published fits give microsiemens, divided here by the largest conductance.
    """

    coefficients: tuple[Scalar, ...]
    full_scale: Positive = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for c in reversed(self.coefficients):  # Horner
            result = result * x + c
        return result / self.full_scale


@dataclass(frozen=True, kw_only=True)
class LogLaw(Curve):
    r"""$f(x) = \mathrm{clip}(a \ln x + b,\ \mathrm{low},\ \mathrm{high})$.

    Args:
        slope: $a$.
        intercept: $b$.
        low: lower bound.
        high: upper bound.
    """

    slope: Scalar
    intercept: Scalar
    low: Scalar
    high: Scalar

    def __call__(self, x: Tensor) -> Tensor:
        line = self.slope * x.clamp(min=1e-7).log() + self.intercept
        return torch.clamp(torch.clamp(line, min=self.low), max=self.high)  # one by one: the two may be of different kinds


@dataclass(frozen=True, kw_only=True)
class InversePower(Curve):
    r"""$f(x) = \min(a / x^{p},\ \mathrm{high})$.

    Args:
        scale: $a$.
        power: $p$.
        high: upper bound, reached at small x.
    """

    scale: Positive
    power: Positive
    high: Positive

    def __call__(self, x: Tensor) -> Tensor:
        knee = (self.scale / self.high) ** (1 / self.power)  # below it the bound holds: no infinity, no NaN gradient at x = 0
        return self.scale * torch.clamp(x, min=knee) ** -self.power


@dataclass(frozen=True, kw_only=True)
class Exponential(Curve):
    r"""$f(x) = a\,e^{-x / \ell}$.

    Args:
        scale: $a$.
        length: $\ell$.
    """

    scale: Scalar
    length: Positive

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * torch.exp(-x / self.length)


@dataclass(frozen=True, kw_only=True)
class SaturatingExponential(Curve):
    r"""$f(x) = \frac{a}{s}\,\big(1 - e^{-x s / \ell}\big)$: zero at zero, $a / s$ far out.

    Args:
        scale: $a$.
        length: $\ell$.
        full_scale: $s$; a published fit gives nanoamperes, divided here by the largest current.
    """

    scale: Scalar
    length: Positive
    full_scale: Positive = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * -torch.expm1(-x * self.full_scale / self.length) / self.full_scale


@dataclass(frozen=True, kw_only=True)
class Piecewise(Curve):
    """One curve below a threshold, another from it on.

    Args:
        threshold: where the second begins.
        below: for x < threshold.
        above: for x >= threshold.
    """

    threshold: Positive
    below: Curve
    above: Curve

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(x < self.threshold, self.below(x), self.above(x))


def evaluate(parameter: Scalar | Curve, x: Tensor) -> Scalar:
    """The parameter at conductance `x`, at its magnitude where weights are signed; itself where it is a constant."""
    return parameter(x.abs()) if isinstance(parameter, Curve) else parameter
