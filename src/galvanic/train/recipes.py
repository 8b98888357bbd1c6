"""Recipes are data: how a network is trained and put on the chip. An ablation is `replace(recipe, ...)`."""

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import nn

from galvanic.nn import analog_layers
from galvanic.physics import Value
from galvanic.profile import Profile
from galvanic.ranges import Calibrated, FromData, Learned, MinimumError, Range

YEAR_S = 365 * 86400.0
_FIRST_READ_S = 20.0  # ages shorter than this are alike: the scale on which log-uniform begins


@dataclass(frozen=True, kw_only=True)
class Training(Value):
    """How the weights are found.

    Args:
        hardware_from: share of the steps after which the network trains on fresh chips; None: never, the training is digital.
        ramp: share of the steps, from there on, over which the noise rises from nothing to the hardware's level.
        clip_sigmas: weights are clipped at so many standard deviations of their layer after every step on chips; None: never.
        oldest_s: every step's chip has an age drawn log-uniformly up to this one; 0: it is freshly written.
        frozen_statistics: batch normalisation keeps, on chips, the statistics of the digital part. (Statistics of the batch would hide a
            drift of the whole layer during training, and show it afterwards.)
    """

    hardware_from: Annotated[float, Ge(0), Le(1)] | None = None
    ramp: Annotated[float, Ge(0), Le(1)] = 0.0
    clip_sigmas: Annotated[float, Gt(0)] | None = None
    oldest_s: Annotated[float, Ge(0)] = 0.0
    frozen_statistics: bool = False

    def noise_level(self, progress: float) -> float:
        """Noise, in units of the hardware's, at this share of the steps."""
        if self.hardware_from is None or progress < self.hardware_from:
            return 0.0
        return 1.0 if self.ramp == 0 else min(1.0, (progress - self.hardware_from) / self.ramp)

    def age_s(self, u: float) -> float:
        """The age of a step's chip, for u uniform on [0, 1)."""
        return _FIRST_READ_S * math.expm1(u * math.log1p(self.oldest_s / _FIRST_READ_S))


@dataclass(frozen=True, kw_only=True)
class Recipe(Value):
    """A way to get a network onto a chip.

    Args:
        name: short name.
        summary: one sentence for a reader.
        training: how the weights are found.
        input_range: how input ranges are found, where the hardware leaves them to data; None: as the profile says.
        output_range: likewise for output ranges.
    """

    name: str
    summary: str
    training: Training = Training()
    input_range: Range | None = None
    output_range: Range | None = None

    def adapt(self, profile: Profile) -> Profile:
        """The hardware with this recipe's ranges; those that are dynamic or fixed by it stay, and none that is a shift is learned."""
        changes = {
            side: chosen
            for side in ("input_range", "output_range")
            if (chosen := getattr(self, side)) is not None
            and isinstance(getattr(profile, side), FromData)
            and not (profile.power_of_two_scales and isinstance(chosen, Learned))
        }
        return replace(profile, **changes)


RECIPES = {
    r.name: r
    for r in (
        Recipe(
            name="digital",
            summary="Trained in floating point and put on the chip as it is; converter ranges span the largest signal.",
            input_range=Calibrated(),
            output_range=Calibrated(),
        ),
        Recipe(
            name="ptq",
            summary="The same weights; converter ranges chosen afterwards for the least quantisation error (post-training quantisation).",
            input_range=MinimumError(),
            output_range=MinimumError(),
        ),
        Recipe(
            name="noise",
            summary="A third of the same number of steps in floating point, then every step on a fresh simulated chip of another age, up "
            "to one year: noise ramped up to the hardware's level, weights clipped, converter ranges learned (hardware-aware training).",
            training=Training(hardware_from=1 / 3, ramp=0.1, clip_sigmas=2.5, oldest_s=YEAR_S, frozen_statistics=True),
            input_range=Learned(),
            output_range=Learned(),
        ),
    )
}
"""The recipes of the main job by name."""


@torch.no_grad()
def clip_weights(model: nn.Module, sigmas: float) -> None:
    """Clip the weights of every analog layer at so many of their standard deviations, in place.

    A few large weights set the scale against which all the others are written; without them a weight uses more of the conductance range.

    Reference:
        Joshi et al., Accurate deep neural network inference using computational phase-change memory, Nat. Commun. 11, 2020.
    """
    for layer in analog_layers(model).values():
        limit = sigmas * layer.weight.std(correction=0)
        layer.weight.clamp_(-limit, limit)
