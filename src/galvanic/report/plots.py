"""The figures of the page, each from rows to one or more SVG panels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from . import words
from .run import Run
from .summary import Spread, average, by, compensations, spreads
from .svg import panel

# Okabe and Ito, Color Universal Design, 2008: told apart by all common kinds of colour vision.
COLORS = {"digital": "#D55E00", "ptq": "#0072B2", "noise": "#009E73"}
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#5b5b5b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def colors(recipes: Sequence[str]) -> dict[str, str]:
    """One colour a recipe, the same on every figure of the page."""
    others = [name for name in recipes if name not in COLORS]
    return {name: COLORS[name] if name in COLORS else OTHERS[others.index(name) % len(OTHERS)] for name in recipes}


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
        panel(lambda axes, n=name, c=curves: draw(axes, n, c), size=(3.9, 3.7), describe=f"Accuracy over time, {words.compensation(name)}")
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

    return [panel(draw, size=(5.6, 4.0), describe="Accuracy over the noise level")] if rows else []


def layer_errors(run: Run, layers: Sequence[str], ages_s: Sequence[float]) -> list[Markup]:
    """Error of every layer's analog product, bars grouped by recipe, one panel an age on one scale."""
    rows = [row for row in run.of("layer") if row["age_s"] in ages_s]
    errors = {key: found for key, group in by(rows, "age_s", "layer", "recipe").items() if (found := average(group, "error")) is not None}
    shown = [layer for layer in layers if any(key[1] == layer for key in errors)]
    recipes = [name for name in run.recipes if any(key[2] == name for key in errors)]
    if not errors:
        return []

    def draw(axes: Axes, age_s: float) -> None:
        axes.set_title(words.after(age_s))
        for place, name in enumerate(recipes):
            y = np.arange(len(shown)) + 0.8 * ((place + 0.5) / len(recipes) - 0.5)
            widths = [errors.get((age_s, layer, name), 0.0) for layer in shown]
            axes.barh(y, widths, 0.76 / len(recipes), color=colors(run.recipes)[name])
        axes.set_yticks(range(len(shown)), [short(layer) for layer in shown])
        axes.set_ylim(len(shown) - 0.45, -0.55)
        axes.set_xlim(0, 1.08 * max(errors.values()) or 1)
        axes.grid(axis="x", visible=True)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(lambda error, _: f"{100 * error:.3g} %")
        axes.set_xlabel("error of the product, % of its size")

    size = 4.8, 1.1 + len(shown) * (0.16 * len(recipes) + 0.12)
    return [panel(lambda axes, a=a: draw(axes, a), size=size, describe=f"Layer errors {words.after(a)}") for a in ages_s]


def losses(run: Run) -> list[Markup]:
    """Training loss over the epochs, mean over the seeds."""
    found = {key: loss for key, group in by(run.of("training"), "recipe", "epoch").items() if (loss := average(group, "loss")) is not None}
    if not found:
        return []

    def draw(axes: Axes) -> None:
        ends = []
        for name in run.recipes:
            epochs = sorted(key[1] for key in found if key[0] == name)
            if epochs:
                y = [found[name, epoch] for epoch in epochs]
                axes.plot(epochs, y, color=colors(run.recipes)[name], linewidth=1.8)
                ends.append((epochs[-1], y[-1], name))
        if min(found.values()) > 0:
            axes.set_yscale("log")
        for x, y, name in ends:
            axes.annotate(short(words.recipe(name)), (x, y), (5, 0), textcoords="offset points", va="center", color=colors(run.recipes)[name])
        axes.set_xlabel("epoch")
        axes.set_title("training loss, mean over the seeds")

    return [panel(draw, size=(5.6, 3.2), describe="Training loss over the epochs")]


def age_axis(ages_s: Sequence[float]) -> dict[float, float]:
    """Where each age stands on a logarithmic axis on which age 0 has a place of its own, left of a gap.

    >>> age_axis([0, 10, 1000])
    {0: -0.2, 10: 1.0, 1000: 3.0}
    """
    positive = [seconds for seconds in ages_s if seconds > 0]
    zero = log10(positive[0]) - 1.2 if positive else 0.0
    return {seconds: round(log10(seconds), 6) if seconds > 0 else round(zero, 6) for seconds in ages_s}


def apart(values: Sequence[float], gap: float, top: float) -> list[float]:
    """The values moved as little as needed to be `gap` apart and below `top`, for labels that must not overlap.

    >>> apart([0.5, 0.5, 0.1], 0.2, 0.6)
    [0.4, 0.6, 0.1]
    """
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    placed = [float(values[i]) for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    ceiling = top
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return [round(placed[order.index(i)], 9) for i in range(len(values))]


def short(name: str, length: int = 24) -> str:
    """A name that fits beside a figure."""
    name = " ".join(name.split())
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _curves(run: Run, rows: Sequence[Mapping], field: str, place: Mapping[float, float]) -> list[Curve]:
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
        axes.annotate(label, (0, reference), (5, 3), xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=9.5)


def _mark_break(axes: Axes, place: Mapping[float, float]) -> None:
    if 0 in place and len(place) > 1:
        zero, first = sorted(place.values())[:2]
        axes.text(
            (zero + first) / 2, 0, "//", transform=axes.get_xaxis_transform(), ha="center", va="center", color="#8a8a86",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
