"""Recipes are data: how a network is trained and put on the chip. An ablation is `replace(recipe, ...)`."""

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import nn

from galvanic.nn import analog_layers
from galvanic.physics import Value
from galvanic.profile import Profile
from galvanic.ranges import Calibrated, FromData, Learned, MinimumError, Range
from galvanic.train.injection import ParametricNoise
from galvanic.train.lsq import LSQ, QuantisedTraining
from galvanic.train.objectives import Total
from galvanic.train.robustness import Distillation, Divergence
from galvanic.train.rounding import AdaRound, LeastSquares, Rounding
from galvanic.train.schedules import Constant, Fluctuation, Ramp, Schedule
from galvanic.train.sharpness import SharpnessAware
from galvanic.train.terms import Alignment, SignalRange, Term, WeightPrecision, WriteRegularity

YEAR_S = 365 * 86400.0
_FIRST_READ_S = 20.0  # ages shorter than this are alike: the scale on which log-uniform begins
_NOMINAL = Constant()


@dataclass(frozen=True, kw_only=True)
class Blocks(Value):
    r"""Stochastic residual blocks in place of plain ones, from the first step on.

    Args:
        gate: where the learned gate $a$ starts.
        noise: whether each block has an adaptive noise $N$, made from the hardware, while the network is not on it.
        on_chips: whether it stays on where the chip makes noise of its own.
        anchor: weight of the loss that ties learned noise to the measured one; 0 lets it go where cross-entropy takes it.
    """

    gate: Annotated[float, Gt(0), Lt(1)] = 0.5
    noise: bool = False
    on_chips: bool = False
    anchor: Annotated[float, Ge(0)] = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_chips and not self.noise:
            raise ValueError("Blocks.on_chips keeps the adaptive noise on chips: it needs noise=True")


@dataclass(frozen=True, kw_only=True)
class Training(Value):
    """How the weights are found.

    Args:
        hardware_from: share of the steps after which the network trains on fresh chips; None: never, the training is digital.
        schedule: the noise level on chips.
        fluctuation: of that level, from example to example or step to step; None: none.
        clip_sigmas: weights are clipped at so many standard deviations of their layer after every step on chips; None: never.
        oldest_s: every step's chip has an age drawn log-uniformly up to this one; 0: it is freshly written.
        frozen_statistics: batch normalisation keeps, on chips, the statistics of the digital part. (Statistics of the batch would hide a
            drift of the whole layer during training, and show it afterwards.)
        quantised: how weights are rounded in training, with the bits of the hardware; None: as the hardware does.
        injection: noise of learned size on digital weights; None: none.
        blocks: what residual blocks become; None: they stay.
        hardware: terms of the loss that the hardware asks for, on chips.
        robustness: terms of the loss that compare predictions, on chips.
        distillation: on chips, from the network as it was before; None: none.
        sharpness: the optimiser's step at the worst point nearby, throughout; None: the plain gradient.

    Raises:
        ValueError: what acts on chips without `hardware_from`; parts that exclude one another.
    """

    hardware_from: Annotated[float, Ge(0), Le(1)] | None = None
    schedule: Schedule = _NOMINAL
    fluctuation: Fluctuation | None = None
    clip_sigmas: Annotated[float, Gt(0)] | None = None
    oldest_s: Annotated[float, Ge(0)] = 0.0
    frozen_statistics: bool = False
    quantised: QuantisedTraining | None = None
    injection: ParametricNoise | None = None
    blocks: Blocks | None = None
    hardware: tuple[Term, ...] = ()
    robustness: tuple[Term, ...] = ()
    distillation: Distillation | None = None
    sharpness: SharpnessAware | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hardware_from is None:
            plain = Training.__dataclass_fields__
            for name in ("schedule", "fluctuation", "clip_sigmas", "oldest_s", "frozen_statistics", *_ON_CHIPS):
                if getattr(self, name) != plain[name].default:
                    raise ValueError(f"Training.{name} acts on chips, and this training is digital: give hardware_from, or leave it out")
            if self.blocks is not None and self.blocks.on_chips:
                raise ValueError("Training.blocks stay on chips, and this training is digital: give hardware_from, or leave out on_chips")
        elif self.injection is not None:
            raise ValueError("Training.injection is noise on digital weights: leave out hardware_from, or the injection")
        if self.distillation is not None and self.hardware_from == 0:
            raise ValueError("Training.distillation is from the network as it was before the chips, and hardware_from = 0 leaves none")
        if self.clip_sigmas is not None and self.quantised is not None:
            raise ValueError("Training: clip_sigmas clips stored weights, quantised computes them from others: one of the two")
        for term in (*self.hardware, *self.robustness):
            if isinstance(term, WriteRegularity):
                raise ValueError("Training: WriteRegularity compares with weights written to one device; these chips are new at every step")
        Total(hardware=self.hardware, robustness=self.robustness)  # refuses one term twice

    def noise_level(self, progress: float) -> float:
        """Mean noise, in units of the hardware's, at this share of the steps."""
        if self.hardware_from is None or progress < self.hardware_from:
            return 0.0
        return self.schedule.level(progress - self.hardware_from)

    def noise_spread(self, progress: float) -> float:
        """Standard deviation of that level from step to step."""
        if self.hardware_from is None or progress < self.hardware_from:
            return 0.0
        return self.schedule.spread(progress - self.hardware_from)

    def age_s(self, u: float) -> float:
        """The age of a step's chip, for u uniform on [0, 1)."""
        return _FIRST_READ_S * math.expm1(u * math.log1p(self.oldest_s / _FIRST_READ_S))


_ON_CHIPS = ("quantised", "hardware", "robustness", "distillation")


@dataclass(frozen=True, kw_only=True)
class Recipe(Value):
    """A way to get a network onto a chip.

    Args:
        name: short name.
        summary: one sentence for a reader.
        training: how the weights are found.
        rounding: how digital weights are put on the levels of the hardware; None: nearest, by the hardware itself.
        input_range: how input ranges are found, where the hardware leaves them to data; None: as the profile says.
        output_range: likewise for output ranges.
    """

    name: str
    summary: str
    training: Training = Training()
    rounding: Rounding | None = None
    input_range: Range | None = None
    output_range: Range | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounding is not None and self.training.hardware_from is not None:
            raise ValueError(f"Recipe {self.name!r}: rounding is for weights trained digitally; leave it out, or hardware_from")

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


_LEARNED = {"input_range": Learned(), "output_range": Learned()}
_AFTERWARDS = {"input_range": MinimumError(), "output_range": MinimumError()}
_NO_NOISE = Constant(at=0.0)
_FROM = 0.15  # share of the steps in floating point, the same for every recipe of the studies that trains on chips
_RISE = Ramp(over=0.5)
_TUNED = Training(hardware_from=_FROM, schedule=_RISE, clip_sigmas=1.25)
_TEACHER = Distillation(temperature=2.0, share=0.3)
_OURS = replace(
    _TUNED,
    blocks=Blocks(),
    hardware=(WeightPrecision(bits=4), SignalRange(), Alignment()),
    robustness=(Divergence(),),
    distillation=_TEACHER,
)
_REVISED = replace(_TUNED, hardware=(Alignment(),), robustness=(Divergence(),), sharpness=SharpnessAware(radius=0.5, adaptive=True))


def _on_chips(name: str, summary: str, **changes: object) -> Recipe:
    return Recipe(name=name, summary=summary, training=replace(Training(hardware_from=_FROM), **changes), **_LEARNED)  # type: ignore[arg-type]


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
            **_AFTERWARDS,  # type: ignore[arg-type]
        ),
        Recipe(
            name="noise",
            summary="A third of the same number of steps in floating point, then every step on a fresh simulated chip of another age, up "
            "to one year: noise ramped up to the hardware's level, weights clipped, converter ranges learned (hardware-aware training).",
            training=Training(hardware_from=1 / 3, schedule=Ramp(over=0.1), clip_sigmas=2.5, oldest_s=YEAR_S, frozen_statistics=True),
            **_LEARNED,  # type: ignore[arg-type]
        ),
        Recipe(
            name="ptq-mse",
            summary="As ptq, and weights clipped where their quantisation error is least.",
            rounding=LeastSquares(),
            **_AFTERWARDS,  # type: ignore[arg-type]
        ),
        Recipe(
            name="adaround",
            summary="As ptq, and each weight rounded up or down as the output of its layer asks for (AdaRound).",
            rounding=AdaRound(steps=500),
            **_AFTERWARDS,  # type: ignore[arg-type]
        ),
        _on_chips("qat", "Trained through the rounding of weights and signals (straight-through), without noise.", schedule=_NO_NOISE),
        _on_chips(
            "lsq",
            "As qat, with learned step sizes of the weights (LSQ).",
            schedule=_NO_NOISE,
            quantised=LSQ(bits=4),  # the hardware's, where it has others
        ),
        Recipe(
            name="pni",
            summary="Digital, with noise of learned size on the weights (parametric noise injection under plain cross-entropy).",
            training=Training(injection=ParametricNoise()),
            **_AFTERWARDS,  # type: ignore[arg-type]
        ),
        _on_chips("snt", "Every step on a fresh chip, at the hardware's noise from the start (constant-noise training)."),
        _on_chips("snt-half", "As snt, at half the noise.", schedule=Constant(at=0.5)),
        _on_chips("snt-double", "As snt, at twice the noise.", schedule=Constant(at=2.0)),
        _on_chips(
            "vant",
            "As snt, the noise level of reads drawn anew for each example around the nominal one (variance-aware noisy training).",
            fluctuation=Fluctuation(theta=0.5),
        ),
        _on_chips(
            "vant-one-sided",
            "As vant, levels from the nominal one upwards.",
            fluctuation=Fluctuation(theta=0.5, one_sided=True),
        ),
        _on_chips("snt-ramp", "As snt, noise ramped up over half of the steps.", schedule=_RISE),
        Recipe(
            name="tuned",
            summary="As snt-ramp, weights clipped at 1.25 standard deviations: the strong baseline.",
            training=_TUNED,
            **_LEARNED,  # type: ignore[arg-type]
        ),
        Recipe(
            name="distilled",
            summary="As tuned, with distillation from the network as it was before the chips.",
            training=replace(_TUNED, distillation=_TEACHER),
            **_LEARNED,  # type: ignore[arg-type]
        ),
        Recipe(
            name="sam",
            summary="As tuned, sharpness-aware: two gradients a step, so twice the cost.",
            training=replace(_TUNED, sharpness=SharpnessAware(radius=0.05)),
            **_LEARNED,  # type: ignore[arg-type]
        ),
        Recipe(
            name="asam",
            summary="As sam, the radius measured by the size of each weight (adaptive).",
            training=replace(_TUNED, sharpness=SharpnessAware(radius=0.5, adaptive=True)),
            **_LEARNED,  # type: ignore[arg-type]
        ),
        Recipe(
            name="ours",
            summary="As tuned, with gated stochastic residual blocks, a physics-informed loss, a robustness term and distillation.",
            training=_OURS,
            **_LEARNED,  # type: ignore[arg-type]
        ),
        Recipe(
            name="ours-revised",
            summary="As tuned, with alignment of signals, a robustness term and adaptive sharpness-aware steps: twice the cost.",
            training=_REVISED,
            **_LEARNED,  # type: ignore[arg-type]
        ),
    )
}
"""All recipes by name."""

MAIN = ("digital", "ptq", "noise")
"""Those of the main job."""

_PLAIN: dict[str, tuple[str, object]] = {
    "blocks": ("without gated blocks", None),
    "hardware": ("without the physics-informed loss", ()),
    "robustness": ("without the robustness term", ()),
    "distillation": ("without distillation", None),
    "sharpness": ("without sharpness-aware steps", None),
    "fluctuation": ("without fluctuating noise", None),
    "injection": ("without injected noise", None),
    "quantised": ("with the rounding of the hardware alone", None),
    "clip_sigmas": ("without clipping", None),
    "oldest_s": ("on freshly written chips", 0.0),
    "frozen_statistics": ("with the statistics of each batch", False),
    "schedule": ("at the hardware's noise throughout", _NOMINAL),
}


def ablations(recipe: Recipe) -> tuple[Recipe, ...]:
    """The recipe without each one of its parts; a loss of several terms also without each term."""
    found = []
    for part, (words, plain) in _PLAIN.items():
        value = getattr(recipe.training, part)
        if value == plain:
            continue
        found.append(_without(recipe, part, words, plain))
        if isinstance(value, tuple) and len(value) > 1:
            for term in value:
                rest = tuple(other for other in value if other is not term)
                found.append(_without(recipe, f"{part}-{term.name}", f"without {term.name}", rest, field=part))
    return tuple(found)


def _without(recipe: Recipe, label: str, words: str, value: object, *, field: str | None = None) -> Recipe:
    training = replace(recipe.training, **{field or label: value})  # type: ignore[arg-type]
    return replace(recipe, name=f"{recipe.name}-no-{label.replace('_', '-')}", summary=f"As {recipe.name}, {words}.", training=training)


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
