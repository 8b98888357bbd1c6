"""Courses along an axis: a line each, a band for the spread, and a label at the end that overlaps no other."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
from matplotlib.axes import Axes

from galvanic.report import words
from galvanic.report.svg import apart

MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A course along an axis.

    Args:
        label: what stands at its end.
        color: of the line, its band and its label.
        marker: of its points; None: no points.
        x: places on the axis, ascending.
        mean: there.
        low: lower edge of the band; the mean where there is none.
        high: its upper edge.
    """

    label: str
    color: str
    marker: str | None = None
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def bottom(lines: Sequence[Line]) -> float:
    """Where an axis of accuracies that shows all the lines begins."""
    lowest = max(0.0, min(low for line in lines for low in line.low))
    return min(0.9, floor(10 * lowest) / 10)


def top(lines: Sequence[Line], reference: float | None) -> float:
    """Where it ends if it need not reach 100 %."""
    highest = max([*(high for line in lines for high in line.high), *([] if reference is None else [reference])])
    return max(0.1, ceil(10 * min(1.0, highest)) / 10)


def accuracies(axes: Axes, lines: Sequence[Line], ends: tuple[float, float], reference: float | None, span: tuple[float, float]) -> None:
    """Draw accuracies, as percent.

    Args:
        axes: where.
        lines: each with its label, under which stands its last value.
        ends: of the axis of accuracies.
        reference: a dashed line, the accuracy in floating point; None: none.
        span: of the other axis.
    """
    for line in lines:
        axes.fill_between(line.x, np.clip(line.low, 0, 1), np.clip(line.high, 0, 1), color=line.color, alpha=0.16, linewidth=0)
        axes.plot(line.x, line.mean, color=line.color, marker=line.marker, markersize=5, linewidth=2, clip_on=False)
    frame(axes, ends, span)
    width = (span[1] - span[0]) or 1.0
    height = ends[1] - ends[0]
    for line, y in zip(lines, apart([line.mean[-1] for line in lines], 0.115 * height, ends[1]), strict=True):
        at = span[1] + 0.05 * width if line.x[-1] == span[1] else line.x[-1] + 0.03 * width
        axes.text(at, y, f"{line.label}\n{words.percent(line.mean[-1])}", color=line.color, va="center", linespacing=1.05, fontsize=9.5)
    if reference is not None:
        axes.axhline(reference, color="#1d1d1f", linewidth=1.2, linestyle=(0, (5, 3)))
        label = f"floating point {words.percent(reference)}"
        axes.annotate(
            label, (1, reference), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", fontsize=9.5
        )


def frame(axes: Axes, ends: tuple[float, float], span: tuple[float, float], steps: int = 6) -> None:
    """Limits and ticks of accuracies, at most so many steps, over an axis of that span."""
    height, width = ends[1] - ends[0], (span[1] - span[0]) or 1.0
    axes.set_ylim(ends[0], ends[1] + 0.09 * height)
    axes.set_xlim(span[0] - 0.03 * width, span[1] + 0.03 * width)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if ceil(height / step) <= steps)
    axes.set_yticks(np.arange(ends[0], ends[1] + 1e-9, step))
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")


def logarithms(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw decimal logarithms of positive numbers, the ticks being the numbers."""
    for line in lines:
        axes.plot(line.x, line.mean, color=line.color, marker=line.marker, markersize=3.5, linewidth=1.8)
    low, high = axes.get_ylim()
    for line, y in zip(lines, apart([line.mean[-1] for line in lines], 0.09 * (high - low), high), strict=True):
        axes.annotate(line.label, (line.x[-1], y), (6, 0), textcoords="offset points", va="center", color=line.color)
    axes.yaxis.set_major_formatter(lambda y, _: f"{10**y:.2g}")
