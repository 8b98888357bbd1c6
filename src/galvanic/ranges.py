"""What a converter's full scale is set to: found anew for every vector, fixed, calibrated from data, or learned."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor

from galvanic.physics.value import Value

_CANDIDATES = 80  # full scales tried by MinimumError


@dataclass(frozen=True, kw_only=True)
class Range(Value, ABC):
    """The full scale of the converters at one side of a tile.

    An input range is in units of the signal. An output range is in units of one cell: the current of a device at full conductance
    under a full-scale input is 1.
    """


@dataclass(frozen=True, kw_only=True)
class Dynamic(Range):
    """The largest magnitude of each vector: of inputs (for a convolution, of each image), or of the results of one tile at one position."""


@dataclass(frozen=True, kw_only=True)
class Fixed(Range):
    """One number, for ever.

    Args:
        value: the full scale.
    """

    value: Annotated[float, Gt(0)]


class FromData(Range, ABC):
    """A range that `calibrate_ranges` sets from a sample of the signal, and that a checkpoint keeps."""

    @abstractmethod
    def choose(self, sample: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
        """The full scale for a 1-d sample of magnitudes; `convert` is the converter, for signals in units of its full scale."""


@dataclass(frozen=True, kw_only=True)
class Calibrated(FromData):
    """A quantile of the magnitudes seen; 1 is the largest.

    Args:
        quantile: the share of values inside the range.
    """

    quantile: Annotated[float, Gt(0), Le(1)] = 1.0

    def choose(self, sample: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.quantile(sample, self.quantile)


@dataclass(frozen=True, kw_only=True)
class MinimumError(FromData):
    """The full scale with the least mean squared error of conversion, out of 80 between 1/80 of the largest magnitude and all of it."""

    def choose(self, sample: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
        scales = sample.max() * torch.linspace(1 / _CANDIDATES, 1, _CANDIDATES, dtype=sample.dtype, device=sample.device)
        errors = torch.stack([(convert(sample / s) * s - sample).square().mean() for s in scales])
        return scales[errors.argmin()]


@dataclass(frozen=True, kw_only=True)
class Learned(FromData):
    """A parameter of the layer, trained with the weights; it starts at a quantile of the magnitudes seen.

    Args:
        quantile: where it starts.
    """

    quantile: Annotated[float, Gt(0), Le(1)] = 0.999

    def choose(self, sample: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.quantile(sample, self.quantile)
