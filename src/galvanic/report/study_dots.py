"""Dots with intervals, a row an arm: differences to the baseline, and accuracies under one kind of noise at a time."""

from collections.abc import Sequence
from functools import partial
from statistics import median

from markupsafe import Markup
from matplotlib.axes import Axes

from galvanic.report import words
from galvanic.report.run import Row
from galvanic.report.study import Study
from galvanic.report.study_cast import Cast
from galvanic.report.study_conditions import Condition, nominal, sweep
from galvanic.report.study_lines import INK
from galvanic.report.study_words import tone, verdict
from galvanic.report.svg import panel, short

HUES = {"better": "#1a7f4b", "worse": "#b3261e", "soft": "#6b6a66"}
SHAPES = {"better": "^", "worse": "v"}


def judged(study: Study) -> list[Condition]:
    """The conditions whose comparisons are drawn: the hardware as it is, and twice its noise; else the first that has any."""
    first = nominal(study.conditions)
    wanted = [*([first] if first else []), *(c for c in sweep(study.conditions, "level") if c.level == 2)]
    there = {row["condition"] for row in study.said("comparison")}
    return [c for c in wanted if c.name in there] or [c for c in study.conditions if c.name in there][:1]


def forest(study: Study) -> list[Markup]:
    """Difference of each arm to the baseline, with its interval, sorted by the first condition; one figure a condition."""
    conditions = judged(study)
    found = {c: {row["arm"]: row for row in study.said("comparison") if row["condition"] == c.name} for c in conditions}
    order = sorted({arm for rows in found.values() for arm in rows}, key=lambda arm: _rank(arm, list(found.values()), study.arms))
    return [
        panel(
            partial(_forest, title=f"{c.words}, difference to {short(study.baseline, 16)}", rows=rows, order=order),
            size=(4.6, 1.0 + 0.29 * len(order)),
            describe=f"Difference of each arm to {study.baseline}, {c.words}",
        )
        for c, rows in found.items()
    ]


def _rank(arm: str, found: Sequence[dict[str, Row]], arms: Sequence[str]) -> tuple[float, int]:
    return -next((rows[arm]["difference"] for rows in found if arm in rows), 0.0), arms.index(arm)


def _forest(axes: Axes, title: str, rows: dict[str, Row], order: Sequence[str]) -> None:
    limit = reach([_far(row) for row in rows.values()])
    axes.set_title(title)
    axes.axvline(0, color="#8a8a86", linewidth=1.2)
    for y, arm in enumerate(order):
        if arm not in rows:
            continue
        row = rows[arm]
        color, where = HUES[tone(row)], row["difference"]
        if row["low"] is not None:
            axes.plot([_within(row["low"], limit), _within(row["high"], limit)], [y, y], color=color, linewidth=1.8, solid_capstyle="butt")
        beyond = abs(where) > limit
        shape = ("<" if where < 0 else ">") if beyond else SHAPES.get(verdict(row), "o")
        face = color if verdict(row) in SHAPES else "white"
        axes.plot([_within(where, 0.97 * limit)], [y], shape, color=color, markerfacecolor=face, markersize=6.5, clip_on=False)
        axes.text(1.02, y, words.points(where), color=color, va="center", transform=axes.get_yaxis_transform(), fontsize=9.5)
    axes.set_xlim(-limit, limit)
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:+.3g}".replace("-", "−").replace("+0", "0") if x else "0")
    axes.set_xlabel("percentage points")
    _rows(axes, order)


def static(study: Study, cast: Cast) -> list[Markup]:
    """Accuracy under the noise of the chip alone and under that of reads alone, as written (hollow) and recalibrated (filled)."""
    groups = {
        kind: [c for c in study.conditions if c.alone("noise", "level", "recalibrated") and c.noise == kind] for kind in ("chip", "read")
    }
    shown = {kind: found for kind, found in groups.items() if any(study.measured(c) for c in found)}
    arms = [arm for arm in study.arms if any(study.accuracy(arm, c) for found in shown.values() for c in found)]
    rows = [row for arm in arms for found in shown.values() for c in found if (row := study.accuracy(arm, c))]
    least = min((row["mean"] if row["low"] is None else row["low"] for row in rows), default=0.0)

    def draw(axes: Axes, conditions: Sequence[Condition]) -> None:
        axes.set_title(conditions[0].words.removesuffix(", recalibrated"))
        for y, arm in enumerate(arms):
            for c in conditions:
                if row := study.accuracy(arm, c):
                    _dot(
                        axes, row, y + (0.17 if c.recalibrated else -0.17), cast.colors[arm] if arm in cast.leading else INK, c.recalibrated
                    )
        axes.set_xlim(max(0.0, least - 0.03), 1.0)
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
        _rows(axes, arms)

    size = 4.6, 0.9 + 0.34 * len(arms)
    return [panel(partial(draw, conditions=found), size=size, describe=f"Accuracy by arm, {found[0].words}") for found in shown.values()]


def _dot(axes: Axes, row: Row, y: float, color: str, filled: bool) -> None:
    if row["low"] is not None:
        axes.plot([max(0, row["low"]), min(1, row["high"])], [y, y], color=color, linewidth=1.4, alpha=0.7)
    axes.plot([row["mean"]], [y], "o", color=color, markerfacecolor=color if filled else "white", markersize=5.5)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", visible=True)
    axes.grid(axis="y", visible=False)


def reach(ends: Sequence[float]) -> float:
    """How far an axis of differences goes to either side: to the last end, but not where a few would press all others together.

    >>> round(reach([0.02, 0.03, 0.04]), 3), round(reach([0.02, 0.03, 0.9]), 3)
    (0.044, 0.099)
    """
    return 1.1 * max(min(max(ends), 3 * median(ends), 1.0), 0.005) if ends else 0.01


def _far(row: Row) -> float:
    return max(abs(row["difference"]), abs(row["low"] or 0.0), abs(row["high"] or 0.0))


def _within(x: float, limit: float) -> float:
    return max(-limit, min(limit, float(x)))
