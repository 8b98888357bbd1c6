"""What a study is: arms under one protocol, and the conditions they are measured under."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from galvanic.physics import Gaussian, Quantize
from galvanic.profile import Profile
from galvanic.ranges import Calibrated, Fixed
from galvanic.studies.conditions import AGES, BITS, FLUCTUATING, LEVELS, RECALIBRATED, STATIC, TEMPERATURES, Condition
from galvanic.train import RECIPES, Blocks, Recipe, ablations


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison of recipes: the same data, order, network, budget and chips for each.

    Args:
        name: what is typed.
        summary: the question, in one sentence.
        arms: the recipes, by name.
        baseline: the arm that others are judged against.
        conditions: how each trained network is measured.
        maps: arms whose first network is taken apart: which effect of which layer hurts, and how sharp its minimum is.
        settings: what differs from the common settings.
    """

    name: str
    summary: str
    arms: dict[str, Recipe]
    baseline: str
    conditions: tuple[Condition, ...]
    maps: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


def _named(*names: str) -> dict[str, Recipe]:
    return {name: RECIPES[name] for name in names}


TWO_BIT_WEIGHTS = Profile(
    name="two-bit-weights",
    summary="Weights of three levels, -1, 0 and 1, behind 8-bit inputs; nothing else.",
    input=(Quantize(bits=8),),
    weight=(Quantize(bits=2),),
    input_range=Calibrated(),
)
NOISY_READS = Profile(
    name="noisy-reads",
    summary="Exact weights behind 8-bit converters, and Gaussian noise on every read: absolute, since the hardware fixes the ranges.",
    input=(Quantize(bits=8),),
    output=(Gaussian(std=0.05), Quantize(bits=8)),
    input_range=Calibrated(),
    output_range=Fixed(value=12.0),
)
"""The setting of variance-aware noisy training: noise of 0.6 of the largest contribution of a cell."""

_NOMINAL = tuple(c for c in LEVELS if c.level in (1.0, 2.0))
_WHOLE = tuple(c for c in LEVELS if c.level in (0.0, 1.0, 2.0, 3.0, 4.0))
_SHORT = (*_NOMINAL, *(c for c in RECALIBRATED if c.level in (1.0, 2.0)))
_FASHION = {"data": "fashion-mnist", "train_samples": 4000, "test_samples": 500, "shrink": 2, "width": 8, "epochs": 8}
_DIGITS = {"data": "digits", "width": 8, "stages": [1, 1], "epochs": 30}
_CIFAR = {"data": "cifar10", "train_samples": 3000, "test_samples": 500, "shrink": 2, "width": 12, "epochs": 8}
_OURS = {"ours": RECIPES["ours"], **{recipe.name: recipe for recipe in ablations(RECIPES["ours"])}}

_LEARNED_NOISE = {
    **_named("digital", "pni", "snt"),
    **{
        name: replace(RECIPES["snt"], name=name, summary=summary, training=replace(RECIPES["snt"].training, blocks=blocks))
        for name, summary, blocks in (
            ("gates", "As snt, with gated blocks and no noise of their own.", Blocks()),
            (
                "free-noise",
                "As snt, with gated blocks whose learned noise follows cross-entropy alone.",
                Blocks(noise=True, on_chips=True, anchor=0.0),
            ),
            ("anchored-noise", "The same, tied to the measured noise.", Blocks(noise=True, on_chips=True)),
        )
    },
}

STUDIES = {
    study.name: study
    for study in (
        Study(
            name="survival",
            summary="Which way to train keeps a network alive on a coarse, noisy chip?",
            arms=_named(
                "digital",
                "ptq",
                "ptq-mse",
                "adaround",
                "qat",
                "lsq",
                "pni",
                "snt-half",
                "snt",
                "snt-double",
                "vant",
                "snt-ramp",
                "tuned",
                "distilled",
                "sam",
                "asam",
                "ours",
                "ours-revised",
            ),
            baseline="tuned",
            conditions=(*_WHOLE, *RECALIBRATED, *STATIC, FLUCTUATING[1], *BITS),
            maps=("digital", "tuned"),
            settings=_FASHION,
        ),
        Study(
            name="survival-cifar",
            summary="The same on colour images: digital weights, their quantisation, the strong baseline and ours.",
            arms=_named("digital", "ptq", "ptq-mse", "snt", "tuned", "ours", "ours-revised"),
            baseline="tuned",
            conditions=(*_WHOLE, *RECALIBRATED),
            maps=("tuned",),
            settings=_CIFAR,
        ),
        Study(
            name="ablation",
            summary="What is each part of our recipe worth?",
            arms={**_named("tuned"), **_OURS, **_named("ours-revised")},
            baseline="ours",
            conditions=_SHORT,
            settings=_DIGITS,
        ),
        Study(
            name="fluctuating",
            summary="Does training at levels that vary help where the noise of reads varies (variance-aware noisy training)?",
            arms=_named("digital", "snt-half", "snt", "snt-double", "vant", "vant-one-sided"),
            baseline="snt",
            conditions=(*_WHOLE, *FLUCTUATING),
            settings={**_CIFAR, "width": 8, "profile": NOISY_READS},
        ),
        Study(
            name="two-bits",
            summary="What does learning the step size give at two bits (LSQ)?",
            arms=_named("digital", "ptq", "ptq-mse", "adaround", "qat", "lsq"),
            baseline="qat",
            conditions=(LEVELS[2],),
            settings={**_DIGITS, "profile": TWO_BIT_WEIGHTS},
        ),
        Study(
            name="learned-noise",
            summary="Does a learned noise level switch itself off, and does the anchor keep it honest?",
            arms=_LEARNED_NOISE,
            baseline="snt",
            conditions=_SHORT,
            settings=_DIGITS,
        ),
        Study(
            name="ageing",
            summary="What does a year do to a network on phase-change memory, and what does each recipe make of it?",
            arms=_named("digital", "ptq", "snt", "tuned", "noise", "ours"),
            baseline="tuned",
            conditions=(LEVELS[2], *AGES, *TEMPERATURES),
            settings={**_FASHION, "profile": "pcm"},
        ),
    )
}
"""The studies that come with galvanic."""

Progress = Callable[[str, float], None]
