"""A non-ideality, and what it sees of the world."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor

from galvanic.physics.value import NonNegative, Positive, Scalar, Value, brief

Per = Literal["chip", "write", "snapshot", "read"]
"""The four clocks: new per chip (device-to-device), per write (cycle-to-cycle), per snapshot (slow 1/f noise), per read."""


@dataclass(frozen=True, kw_only=True)
class Conditions(Value):
    """The state of the world around a chip; none of it is random.

    An effect reads what it depends on: of those that come with galvanic, age and noise level matter to most, temperature to `Thermal`.

    Args:
        age_s: seconds since the first possible read after the write; 0 means no drift.
        temperature_K: of the chip.
        time_s: position within an inference, for noise that changes in time.
        supply_V: supply voltage.
        noise_level: multiplies the standard deviation (for faults, the probability) of everything random; 1 is the profile as it is.
    """

    age_s: NonNegative = 0.0
    temperature_K: Positive = 300.0
    time_s: NonNegative = 0.0
    supply_V: Positive = 1.0
    noise_level: NonNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for f in fields(self):
            x = getattr(self, f.name)
            if isinstance(x, Tensor) and (x.ndim or not bool((x.detach() >= 0) & x.detach().isfinite())):
                raise ValueError(f"{type(self).__name__}.{f.name} = {brief(x)}: one finite number, 0 or more")


@dataclass(frozen=True, kw_only=True)
class Context(Conditions):
    """What an effect sees: the conditions and, for effects on weights, two earlier values of the same conductance.

    Args:
        target: the conductance that was asked for.
        written: the conductance just after programming.
    """

    target: Tensor | None = None
    written: Tensor | None = None

    def __post_init__(self) -> None:  # made in every product, of values that were checked as Conditions
        pass


@dataclass(frozen=True, kw_only=True)
class Nonideality(Value, ABC):
    """A deterministic, differentiable function of signal, draw and parameters; `draw` holds all that is random.

    Args:
        per: the clock on which its randomness is new; None for an effect that has none.
        source: where its numbers come from.
    """

    per: Per | None = None
    source: str = field(default="", compare=False)

    after_write: ClassVar[bool] = False
    """Whether it acts on a conductance that has been written before (drift, read noise)."""
    lines: ClassVar[bool] = False
    """Whether neighbouring lines of the array matter. Then `draw` and `apply` see a signal as (..., lines) and the cells of a layer as
    (devices, columns, rows); otherwise the shape is any, and every element is on its own."""

    @property
    def stacked(self) -> int | None:
        """How many draws stand in a leading dimension of the randomness; None for a single one without that dimension."""
        return None

    def draw(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Standardised randomness for a signal of this shape; no physics in it. Standard normal unless a class says otherwise."""
        shape = shape if self.stacked is None else (self.stacked, *shape)
        if generator is None:  # without the keyword, which ONNX does not know
            return torch.randn(shape, device=device, dtype=dtype)
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    @abstractmethod
    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        """The disturbed signal, of the shape of `x`; with ``z=None`` the randomness is off."""


@dataclass(frozen=True, kw_only=True)
class Additive(Nonideality):
    r"""Gaussian noise whose standard deviation may depend on the signal, $y = x + \lambda\,\sigma(x)\,z$ with $z \sim N(0, 1)$.

    $\lambda$ is the noise level of the conditions. A subclass gives $\sigma$.
    """

    @abstractmethod
    def sigma(self, x: Tensor, at: Context) -> Scalar:
        """Standard deviation at signal `x`, in units of full scale; a number or the shape of `x`."""

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        return x if z is None else x + at.noise_level * self.sigma(x, at) * z
