"""Noise whose strength changes within an inference."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from galvanic.physics.base import Context, Nonideality, Per
from galvanic.physics.value import NonNegative, Scalar, as_tensor


@dataclass(frozen=True, kw_only=True)
class TimeVarying(Nonideality):
    r"""Gaussian noise whose mean and spread follow the time, $y = x + \mu(t) + \sigma(t)\,z$.

    $\mu$ and $\sigma$ are linear between the times of a grid and constant beyond it. Tensors (of one dimension) can be learned: the
    likelihood of a measured error is that of $N(\mu(t), \sigma^2(t))$.

    Args:
        times_s: the grid, increasing.
        mean: $\mu$ at these times, in units of full scale.
        std: $\sigma$ at these times, in units of full scale.

    Raises:
        ValueError: times that do not increase, or another number of values than of times.
    """

    times_s: tuple[Scalar, ...] | Tensor
    mean: tuple[Scalar, ...] | Tensor
    std: tuple[NonNegative, ...] | Tensor
    per: Per = "read"

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = [len(v) for v in (self.times_s, self.mean, self.std)]
        if len(set(sizes)) > 1 or not sizes[0]:
            raise ValueError("TimeVarying: {} times, {} means, {} stds; one of each for every time, and one time or more".format(*sizes))
        numbers = [t for t in self.times_s if not isinstance(t, Tensor)]
        if any(a >= b for a, b in pairwise(numbers)):
            raise ValueError(f"TimeVarying.times_s: {', '.join(f'{t:g}' for t in numbers)} do not increase")

    def apply(self, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        y = x + self.mean_at(at.time_s)
        return y if z is None else y + at.noise_level * self.std_at(at.time_s) * z

    def mean_at(self, time_s: Scalar) -> Tensor:
        r"""$\mu(t)$, of the shape of `time_s`."""
        return _interpolate(time_s, self.times_s, self.mean)

    def std_at(self, time_s: Scalar) -> Tensor:
        r"""$\sigma(t)$, of the shape of `time_s`."""
        return _interpolate(time_s, self.times_s, self.std)


def _interpolate(t: Scalar, times: tuple[Scalar, ...] | Tensor, values: tuple[Scalar, ...] | Tensor) -> Tensor:
    """A sum of ramps, each of which rises from 0 to 1 between two times of the grid and is constant outside."""
    v = _vector(values)
    grid, t = _vector(times).to(v.device), as_tensor(t).to(v.device)
    ramps = ((t.unsqueeze(-1) - grid[:-1]) / grid.diff()).clamp(0, 1)
    return v[0] + (ramps * v.diff()).sum(-1)


def _vector(values: tuple[Scalar, ...] | Tensor) -> Tensor:
    return values if isinstance(values, Tensor) else torch.stack([as_tensor(v) for v in values])
