"""How a weight in [-1, 1] becomes conductances in [0, 1]."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from galvanic.physics.value import Value


@dataclass(frozen=True, kw_only=True)
class Encoding(Value, ABC):
    """A linear code of a weight: `decode` undoes `encode`."""

    devices: ClassVar[int]
    """Devices a weight."""
    nonnegative: ClassVar[bool]
    """Whether the devices are conductances, which no effect takes below zero."""

    @abstractmethod
    def encode(self, w: Tensor) -> Tensor:
        """Conductances, (devices, \\*shape of w)."""

    @abstractmethod
    def decode(self, g: Tensor) -> Tensor:
        """The weight these conductances stand for."""

    @abstractmethod
    def decode_variance(self, variance: Tensor) -> Tensor:
        """Variance of the weight, given independent variances of the conductances."""


@dataclass(frozen=True, kw_only=True)
class Direct(Encoding):
    """The signed weight itself, one device each."""

    devices: ClassVar[int] = 1
    nonnegative: ClassVar[bool] = False

    def encode(self, w: Tensor) -> Tensor:
        return w.unsqueeze(0)

    def decode(self, g: Tensor) -> Tensor:
        return g.squeeze(0)

    def decode_variance(self, variance: Tensor) -> Tensor:
        return variance.squeeze(0)


@dataclass(frozen=True, kw_only=True)
class DifferentialPair(Encoding):
    r"""Two conductances whose currents are subtracted, $w = (g_+ - g_-) / (1 - g_\mathrm{min})$; one of the two is at $g_\mathrm{min}$.

    Args:
        g_min: smallest conductance, in units of the largest (the inverse on/off ratio).
    """

    g_min: Annotated[float, Ge(0), Lt(1)] = 0.0
    devices: ClassVar[int] = 2
    nonnegative: ClassVar[bool] = True

    def encode(self, w: Tensor) -> Tensor:
        magnitude = w.abs()
        parts = torch.stack([magnitude + w, magnitude - w]) / 2  # the gradient to w = 0 is 1, which two relu would lose
        return self.g_min + (1 - self.g_min) * parts

    def decode(self, g: Tensor) -> Tensor:
        return (g[0] - g[1]) / (1 - self.g_min)

    def decode_variance(self, variance: Tensor) -> Tensor:
        return variance.sum(0) / (1 - self.g_min) ** 2
