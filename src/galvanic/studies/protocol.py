"""What a study is: arms under one protocol, and the conditions they are measured under."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from galvanic.studies.conditions import AGES, BITS, FLUCTUATING, LEVELS, RECALIBRATED, STATIC, TEMPERATURES, Condition
from galvanic.train import RECIPES, Recipe, ablations


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


_NOMINAL = tuple(c for c in LEVELS if c.level in (1.0, 2.0))
_SHORT = (*_NOMINAL, *(c for c in RECALIBRATED if c.level in (1.0, 2.0)))
_FASHION = {"data": "fashion-mnist", "train_samples": 4000, "test_samples": 500, "shrink": 2, "width": 8, "epochs": 8}
_CIFAR = {"data": "cifar10", "train_samples": 5000, "test_samples": 500, "shrink": 2, "width": 16, "epochs": 10, "augment": True}
_OURS = {"ours": RECIPES["ours"], **{recipe.name: recipe for recipe in ablations(RECIPES["ours"])}}

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
                "ours",
            ),
            baseline="tuned",
            conditions=(*LEVELS, *RECALIBRATED, *STATIC, *FLUCTUATING, *BITS),
            maps=("digital", "tuned", "ours"),
            settings=_FASHION,
        ),
        Study(
            name="survival-cifar",
            summary="The same on colour images: digital weights, their quantisation, the strong baseline and ours.",
            arms=_named("digital", "ptq", "ptq-mse", "snt", "tuned", "ours"),
            baseline="tuned",
            conditions=(*LEVELS, *RECALIBRATED, *STATIC),
            maps=("tuned",),
            settings=_CIFAR,
        ),
        Study(
            name="ablation",
            summary="What is each part of our recipe worth?",
            arms={**_named("tuned"), **_OURS},
            baseline="ours",
            conditions=_SHORT,
            settings=_FASHION,
        ),
        Study(
            name="fluctuating",
            summary="Does training at levels that vary help where the noise of reads varies (variance-aware noisy training)?",
            arms=_named("digital", "snt-half", "snt", "snt-double", "vant", "vant-one-sided"),
            baseline="snt",
            conditions=(*LEVELS, *FLUCTUATING),
            settings={**_CIFAR, "profile": "noisy-reads"},
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
