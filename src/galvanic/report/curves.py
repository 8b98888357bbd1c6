"""Accuracy over the age of a chip and over the noise level: a line a recipe, a band for the spread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, floor, log10

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from galvanic.report import words
from galvanic.report.run import Row, Run
from galvanic.report.summary import Spread, compensations, spreads
from galvanic.report.svg import apart, colors, panel, short

MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The accuracies of one recipe along an axis."""

    recipe: str
    color: str
    marker: str
    x: Sequence[float]
    y: Sequence[Spread]


def over_age(run: Run, reference: float | None) -> list[Markup]:
    """Accuracy over the age, one panel a compensation, all with the same axes; `reference` is the dashed line."""
    rows = run.of("age")
    place = age_axis(sorted({row["age_s"] for row in rows}))
    panels = {name: _curves(run, [r for r in rows if r["compensation"] == name], "age_s", place) for name in compensations(rows)}
    bottom = _bottom([curve for curves in panels.values() for curve in curves])

    def draw(axes: Axes, name: str, curves: list[Curve]) -> None:
        axes.set_title(short(words.compensation(name), 40))
        _lines(axes, curves, bottom, reference, (min(place.values()), max(place.values())))
        axes.set_xticks(list(place.values()), [words.age(seconds).replace(" ", "\n") for seconds in place])
        axes.set_xlabel("time since programming")
        _mark_break(axes, place)

    return [
        panel(partial(draw, name=name, curves=curves), size=(3.9, 3.7), describe=f"Accuracy over time, {words.compensation(name)}")
        for name, curves in panels.items()
    ]


def over_level(run: Run, reference: float | None) -> list[Markup]:
    """Accuracy over the noise level, 1 being the hardware profile's own; nothing without rows."""
    rows = run.of("level")
    levels = sorted({float(row["noise_level"]) for row in rows})
    curves = _curves(run, rows, "noise_level", {level: level for level in levels})

    def draw(axes: Axes) -> None:
        axes.axvline(1, color="#4a4a48", linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate("this hardware", (1, 0.02), (4, 0), xycoords=("data", "axes fraction"), textcoords="offset points", color="#4a4a48")
        _lines(axes, curves, _bottom(curves), reference, (levels[0], levels[-1]))
        axes.set_xticks(levels if len(levels) < 9 else np.linspace(levels[0], levels[-1], 7), minor=False)
        axes.xaxis.set_major_formatter(lambda level, _: f"{level:.3g}×")
        axes.set_xlabel("noise, relative to the hardware profile")

    return [panel(draw, size=(4.6, 3.7), describe="Accuracy over the noise level")] if rows else []


def age_axis(ages_s: Sequence[float]) -> dict[float, float]:
    """Where each age stands on a logarithmic axis on which age 0 has a place of its own, left of a gap.

    >>> age_axis([0, 10, 1000])
    {0: -0.2, 10: 1.0, 1000: 3.0}
    """
    positive = [seconds for seconds in ages_s if seconds > 0]
    zero = log10(positive[0]) - 1.2 if positive else 0.0
    return {seconds: round(log10(seconds), 6) if seconds > 0 else round(zero, 6) for seconds in ages_s}


def _curves(run: Run, rows: Sequence[Row], field: str, place: Mapping[float, float]) -> list[Curve]:
    found, color = spreads(rows, "recipe", field), colors(run.recipes)
    curves = []
    for marker, name in enumerate(run.recipes):
        at = sorted(key[1] for key in found if key[0] == name)
        y = [found[name, each] for each in at]
        if y:
            curves.append(Curve(recipe=name, color=color[name], marker=MARKERS[marker % len(MARKERS)], x=[place[each] for each in at], y=y))
    return curves


def _bottom(curves: Sequence[Curve]) -> float:
    lowest = min(y.mean - (y.std or 0) for curve in curves for y in curve.y)
    return max(0.0, min(0.9, floor(10 * lowest) / 10))


def _lines(axes: Axes, curves: Sequence[Curve], bottom: float, reference: float | None, span: tuple[float, float]) -> None:
    for curve in curves:
        mean, std = np.array([y.mean for y in curve.y]), np.array([y.std or 0.0 for y in curve.y])
        axes.fill_between(curve.x, np.clip(mean - std, 0, 1), np.clip(mean + std, 0, 1), color=curve.color, alpha=0.16, linewidth=0)
        axes.plot(curve.x, mean, color=curve.color, marker=curve.marker, markersize=5, linewidth=2, clip_on=False)
    height, width = 1 - bottom, (span[1] - span[0]) or 1.0
    axes.set_ylim(bottom, 1 + 0.09 * height)
    axes.set_xlim(span[0] - 0.03 * width, span[1] + 0.03 * width)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if ceil(height / step) <= 6)
    axes.set_yticks(np.arange(bottom, 1 + 1e-9, step))
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
    for curve, y in zip(curves, apart([c.y[-1].mean for c in curves], 0.115 * height, 1.0), strict=True):
        label = f"{short(words.recipe(curve.recipe), 18)}\n{words.percent(curve.y[-1].mean)}"
        at = span[1] + 0.05 * width if curve.x[-1] == span[1] else curve.x[-1] + 0.03 * width
        axes.text(at, y, label, color=curve.color, va="center", linespacing=1.05, fontsize=9.5)
    if reference is not None:
        axes.axhline(reference, color="#1d1d1f", linewidth=1.2, linestyle=(0, (5, 3)))
        label = f"floating point {words.percent(reference)}"
        axes.annotate(
            label, (1, reference), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", fontsize=9.5
        )


def _mark_break(axes: Axes, place: Mapping[float, float]) -> None:
    if 0 in place and len(place) > 1:
        zero, first = sorted(place.values())[:2]
        axes.text(
            (zero + first) / 2, 0, "//", transform=axes.get_xaxis_transform(), ha="center", va="center", color="#8a8a86",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
