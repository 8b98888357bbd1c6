"""Losses: over training, by term, and around the trained weights."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import log10
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from galvanic.report.lines import Line, logarithms
from galvanic.report.run import Row, is_number
from galvanic.report.study import Study
from galvanic.report.study_cast import Cast
from galvanic.report.summary import average, by
from galvanic.report.svg import COLORS, OTHERS, panel, short

DIRECTIONS = {"random": "along a random direction", "ascent": "up the gradient"}
_HUES = (*COLORS.values(), *OTHERS)


def training(study: Study, cast: Cast) -> list[Markup]:
    """Loss over the epochs, mean over the seeds, those that do not lead in grey."""
    found = {key: average(rows, "loss") for key, rows in by(study.of("training"), "arm", "epoch").items()}
    leading = [line for arm in cast.leading if (line := _line(short(arm, 18), cast.colors[arm], _of(found, arm)))]
    grey = [line for arm in cast.others if (line := _line("", cast.colors[arm], _of(found, arm)))]

    def draw(axes: Axes) -> None:
        for line in grey:
            axes.plot(line.x, line.mean, color=line.color, linewidth=0.9)
        logarithms(axes, leading)
        _epochs(axes)
        axes.set_title("training loss")

    return [panel(draw, size=(4.6, 3.2), describe="Training loss over the epochs")] if leading else []


def terms(study: Study) -> list[Markup]:
    """The terms of the loss over the epochs, one figure an arm that logged any."""
    figures = []
    for (arm,), rows in by(study.of("training"), "arm").items():
        names = dict.fromkeys(name for row in rows for name in _terms(row))
        lines = [line for place, name in enumerate(names) if (line := _line(short(name, 18), _HUES[place % len(_HUES)], _over(rows, name)))]
        if lines:
            figures.append(panel(partial(_terms_of, arm=arm, lines=lines), size=(4.6, 3.2), describe=f"Terms of the loss, {arm}"))
    return figures


def _terms_of(axes: Axes, arm: str, lines: Sequence[Line]) -> None:
    logarithms(axes, lines)
    _epochs(axes)
    axes.set_title(short(arm))


def _epochs(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")


def landscape(study: Study, cast: Cast) -> list[Markup]:
    """Loss along a direction from the trained weights, one figure a direction, a line an arm."""
    figures = []
    for (direction,), rows in by(study.of("landscape"), "direction").items():
        found = {key: average(group, "loss") for key, group in by(rows, "arm", "radius").items()}
        arms = dict.fromkeys(arm for arm, _ in found)
        lines = [line for place, arm in enumerate(arms) if (line := _line(short(arm, 18), _hue(cast, arm, place), _of(found, arm)))]
        if lines:
            figures.append(panel(partial(_landscape, direction=direction, lines=lines), size=(4.6, 3.2), describe=f"Loss {direction}"))
    return figures


def _landscape(axes: Axes, direction: str, lines: Sequence[Line]) -> None:
    logarithms(axes, lines)
    axes.axvline(0, color="#8a8a86", linewidth=1, linestyle=(0, (1, 2)))
    axes.set_title(DIRECTIONS.get(direction, short(direction)))
    axes.set_xlabel(
        "step, in norms of each filter" if direction == "random" else "step, norm over all weights" if direction == "ascent" else "step"
    )


def _hue(cast: Cast, arm: str, place: int) -> str:
    return cast.colors[arm] if arm in cast.leading else OTHERS[place % len(OTHERS)]


def _line(label: str, color: str, values: Mapping[float, float | None]) -> Line | None:
    """The decimal logarithms of those values that have one."""
    y = {x: log10(value) for x, value in sorted(values.items()) if value is not None and value > 0}
    course = list(y.values())
    return Line(label=label, color=color, marker="o", x=list(y), mean=course, low=course, high=course) if y else None


def _of(found: Mapping[tuple[Any, ...], float | None], arm: str) -> dict[float, float | None]:
    return {key[1]: value for key, value in found.items() if key[0] == arm}


def _terms(row: Row) -> Mapping[str, Any]:
    given = row.get("terms")
    return given if isinstance(given, dict) else {}


def _over(rows: Iterable[Row], name: str) -> dict[float, float | None]:
    found: dict[float, list[float]] = {}
    for row in rows:
        if is_number(_terms(row).get(name)):
            found.setdefault(row["epoch"], []).append(row["terms"][name])
    return {epoch: float(np.mean(values)) for epoch, values in found.items()}
