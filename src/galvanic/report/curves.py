"""Accuracy over the age of a chip and over the noise level: a line a recipe, a band for the spread."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import log10

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from galvanic.report import words
from galvanic.report.lines import MARKERS, Line, accuracies, bottom
from galvanic.report.run import Row, Run
from galvanic.report.summary import Spread, compensations, spreads
from galvanic.report.svg import colors, panel, short


def over_age(run: Run, reference: float | None) -> list[Markup]:
    """Accuracy over the age, one panel a compensation, all with the same axes; `reference` is the dashed line."""
    rows = run.of("age")
    place = age_axis(sorted({row["age_s"] for row in rows}))
    panels = {name: _curves(run, [r for r in rows if r["compensation"] == name], "age_s", place) for name in compensations(rows)}
    lowest = bottom([curve for curves in panels.values() for curve in curves])

    def draw(axes: Axes, name: str, curves: list[Line]) -> None:
        axes.set_title(short(words.compensation(name), 40))
        accuracies(axes, curves, (lowest, 1.0), reference, (min(place.values()), max(place.values())))
        axes.set_xticks(list(place.values()), [words.age(seconds).replace(" ", "\n") for seconds in place])
        axes.set_xlabel("time since programming")
        if 0 in place and len(place) > 1:
            mark_break(axes, *sorted(place.values())[:2])

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
        accuracies(axes, curves, (bottom(curves), 1.0), reference, (levels[0], levels[-1]))
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


def _curves(run: Run, rows: Sequence[Row], field: str, place: Mapping[float, float]) -> list[Line]:
    found, color = spreads(rows, "recipe", field), colors(run.recipes)
    curves = []
    for marker, name in enumerate(run.recipes):
        at = sorted(key[1] for key in found if key[0] == name)
        if at:
            label, look = short(words.recipe(name), 18), MARKERS[marker % len(MARKERS)]
            curves.append(_line([found[name, each] for each in at], [place[each] for each in at], label, color[name], look))
    return curves


def _line(spreads: Sequence[Spread], x: Sequence[float], label: str, color: str, marker: str) -> Line:
    mean, std = np.array([y.mean for y in spreads]), np.array([y.std or 0.0 for y in spreads])
    return Line(label=label, color=color, marker=marker, x=x, mean=mean.tolist(), low=(mean - std).tolist(), high=(mean + std).tolist())


def mark_break(axes: Axes, first: float, second: float) -> None:
    """The sign of a gap between two places on the axis, of which the first is not to scale."""
    axes.text(
        (first + second) / 2, 0, "//", transform=axes.get_xaxis_transform(), ha="center", va="center", color="#8a8a86",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )  # fmt: skip
