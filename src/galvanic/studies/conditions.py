"""Conditions under which a trained network is measured: which noise, how strong, on what converters, how long after the write."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from galvanic.nn import BatchNorm, at, compensate, fluctuate, program
from galvanic.physics import Conditions, Nonideality, Quantize, Value
from galvanic.profile import Profile
from galvanic.studies.moving import moved


@dataclass(frozen=True, kw_only=True)
class Condition(Value):
    r"""One way to measure a network on a chip.

    Args:
        name: short name.
        noise: ``both``; only what belongs to the ``chip`` (fabrication, writes, slow noise); or only what is new at every ``read``.
        level: multiplies all noise.
        theta: the noise of reads has, for each image, a level $|1 + \theta\,\epsilon|$ of its own.
        bits: of all converters and quantised weights; None: those of the hardware.
        age_s: seconds since the write.
        temperature_K: of the chip; None: room temperature.
        recalibrated: whether batch normalisation is given new statistics on the chip, from unlabelled images.
    """

    name: str
    noise: Literal["both", "chip", "read"] = "both"
    level: Annotated[float, Ge(0)] = 1.0
    theta: Annotated[float, Ge(0)] = 0.0
    bits: Annotated[int, Ge(2), Le(16)] | None = None
    age_s: Annotated[float, Ge(0)] = 0.0
    temperature_K: Annotated[float, Gt(0)] | None = None
    recalibrated: bool = False

    def hardware(self, profile: Profile) -> Profile:
        """The hardware as this condition has it."""
        sides = {side: tuple(self._effects(getattr(profile, side))) for side in ("input", "weight", "output")}
        return replace(profile, **sides)  # type: ignore[arg-type]

    def _effects(self, effects: tuple[Nonideality, ...]) -> Iterator[Nonideality]:
        for effect in effects:
            if isinstance(effect, Quantize):
                yield effect if self.bits is None or effect.bits is None else replace(effect, bits=self.bits)
            elif self.noise == "both" or effect.per is None or (effect.per == "read") == (self.noise == "read"):
                yield effect

    def place(self, model: nn.Module, chip: int, calibration: list[Tensor]) -> nn.Module:
        """A copy of an analog model on this chip, under this condition.

        Args:
            model: with its ranges set; it is untouched.
            chip: its number.
            calibration: unlabelled images, where they are asked for.
        """
        placed = moved(model, self.hardware, chip)
        given = {} if self.temperature_K is None else {"temperature_K": self.temperature_K}
        at(program(placed, chip), Conditions(noise_level=self.level, age_s=self.age_s, **given))
        if self.recalibrated and _has_statistics(placed):
            compensate(placed, BatchNorm(calibration))
        return placed

    def scores(self, placed: nn.Module, images: Tensor, batch: int) -> Tensor:
        """Scores of images on a model that `place` gave, (n, classes)."""
        with torch.no_grad():
            return torch.cat([self._batch(placed, part) for part in images.split(batch)])

    def _batch(self, placed: nn.Module, images: Tensor) -> Tensor:
        if self.theta:
            fluctuate(placed, (1 + self.theta * torch.randn(len(images))).abs())
        scores: Tensor = placed(images)
        return scores


def _has_statistics(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in model.modules())


LEVELS = tuple(Condition(name=f"level {level:g}", level=level) for level in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0))
"""The level of all noise, 0 to 4 times the nominal."""
RECALIBRATED = tuple(Condition(name=f"level {level:g}, recalibrated", level=level, recalibrated=True) for level in (1.0, 2.0))
STATIC = (
    Condition(name="chip noise", noise="chip"),
    Condition(name="chip noise, recalibrated", noise="chip", recalibrated=True),
    Condition(name="read noise", noise="read", level=4.0),
    Condition(name="read noise, recalibrated", noise="read", level=4.0, recalibrated=True),
)
"""Noise per chip and per read, apart; that of reads four times, or it would hardly be seen."""
FLUCTUATING = tuple(Condition(name=f"fluctuating {theta:g}", theta=theta) for theta in (0.5, 1.0))
BITS = tuple(Condition(name=f"{bits} bits", bits=bits) for bits in (2, 3, 6, 8))
AGES = tuple(
    Condition(name=f"age {words}", age_s=s) for words, s in (("1 h", 3600.0), ("1 d", 86400.0), ("30 d", 2592e3), ("1 y", 31536e3))
)
TEMPERATURES = tuple(Condition(name=f"{kelvin:g} K", temperature_K=kelvin) for kelvin in (273.0, 333.0, 358.0))
