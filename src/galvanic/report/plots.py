"""The layers' errors as bars, and the training losses."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import log10
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from galvanic.report import words
from galvanic.report.lines import Line, logarithms
from galvanic.report.run import Run
from galvanic.report.summary import average, by
from galvanic.report.svg import colors, panel, short


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

    size = 4.4, 1.1 + len(shown) * (0.16 * len(recipes) + 0.12)
    return [panel(partial(draw, age_s=a), size=size, describe=f"Layer errors {words.after(a)}") for a in ages_s]


def losses(run: Run) -> list[Markup]:
    """Training loss over the epochs on a logarithmic axis, mean over the seeds; a loss of 0 or below is left out."""
    averages = {key: average(group, "loss") for key, group in by(run.of("training"), "recipe", "epoch").items()}
    found = {key: log10(loss) for key, loss in averages.items() if loss is not None and loss > 0}
    recipes = [name for name in run.recipes if any(key[0] == name for key in found)]
    if not found:
        return []

    def draw(axes: Axes) -> None:
        logarithms(axes, [_course(found, name, colors(run.recipes)[name]) for name in recipes])
        axes.set_xlabel("epoch")
        axes.set_title("training loss")

    return [panel(draw, size=(4.6, 3.0), describe="Training loss over the epochs")]


def _course(found: Mapping[tuple[Any, ...], float], name: str, color: str) -> Line:
    epochs = sorted(key[1] for key in found if key[0] == name)
    y = [found[name, epoch] for epoch in epochs]
    return Line(label=short(words.recipe(name), 18), color=color, x=epochs, mean=y, low=y, high=y)
