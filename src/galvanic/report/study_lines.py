"""Accuracy over what was varied: the level of noise, its fluctuation, bits, age, temperature."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from markupsafe import Markup
from matplotlib.axes import Axes

from galvanic.report import words
from galvanic.report.curves import age_axis, mark_break
from galvanic.report.lines import Line, accuracies, bottom, frame, top
from galvanic.report.study import Study
from galvanic.report.study_cast import GREY, Cast
from galvanic.report.study_conditions import Condition, sweep
from galvanic.report.svg import panel, short

SHORTEST = 3  # points; two make no curve
INK = "#3a3a38"
_ROOM_K = 20.0  # room temperature has its place so far left of the first one


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Conditions along an axis.

    Args:
        title: of the figure.
        label: of the axis.
        at: where each condition stands on it.
        ticks: what each place is called.
        span: of the axis.
        broken: whether the first place is not to scale.
        marked: the place of the hardware as it is, where it is to be marked.
    """

    title: str
    label: str
    at: Mapping[Condition, float]
    ticks: Mapping[Condition, str]
    span: tuple[float, float]
    broken: bool = False
    marked: float | None = None


def levels(study: Study) -> list[Sweep]:
    """The level of all noise: on the chip as written, and beside it, where that is a curve, recalibrated on the same axis."""
    written, again = (_over_level(study, recalibrated=recalibrated) for recalibrated in (False, True))
    if len(written.at) < SHORTEST:
        return []
    return [written, replace(again, span=written.span)] if len(again.at) > 1 else [written]


def _over_level(study: Study, *, recalibrated: bool) -> Sweep:
    conditions = _measured(study, sweep(study.conditions, "level", recalibrated=recalibrated))
    return Sweep(
        title="recalibrated on the chip" if recalibrated else "as written",
        label="noise, relative to the hardware profile",
        at={c: c.level for c in conditions},
        ticks={c: f"{c.level:.3g}×" for c in conditions},
        span=_span([c.level for c in conditions]),
        marked=1.0,
    )


def others(study: Study) -> list[Sweep]:
    """Whatever else was varied."""
    conditions = {fact: _measured(study, sweep(study.conditions, fact)) for fact in ("theta", "bits", "age_s", "temperature_K")}
    theta, bits, ages, kelvin = conditions.values()
    own = own_bits(study)
    digits = {c: float(b) for c in bits if (b := c.bits if c.bits is not None else own) is not None}
    axis = age_axis(sorted(c.age_s for c in ages))
    cold = min((c.temperature_K for c in kelvin if c.temperature_K is not None), default=0.0)
    warm = {c: cold - _ROOM_K if c.temperature_K is None else c.temperature_K for c in kelvin}
    found = [
        _sweep("noise of reads that fluctuates", "spread θ of its level, image to image", {c: c.theta for c in theta},
               {c: f"{c.theta:g}" for c in theta}),
        _sweep("bits of converters and weights", "bits", dict(sorted(digits.items(), key=lambda item: item[1])),
               {c: f"{b:g}" for c, b in digits.items()}, marked=None if own is None else float(own)),
        _sweep("age", "time since programming", {c: axis[c.age_s] for c in ages},
               {c: words.age(c.age_s).replace(" ", "\n") for c in ages}, broken=True),
        _sweep("temperature of the chip", "temperature", warm,
               {c: "room" if c.temperature_K is None else f"{c.temperature_K:g} K" for c in kelvin}, broken=True),
    ]  # fmt: skip
    return [each for each in found if each]


def own_bits(study: Study) -> int | None:
    """The bits of the hardware, where all its converters and weights have the same."""
    profile = study.config.get("profile", {})
    effects = [effect for side in ("input", "weight", "output") for effect in profile.get(side) or [] if isinstance(effect, dict)]
    bits = {bits for effect in effects if effect.get("kind") == "Quantize" and isinstance(bits := effect.get("bits"), int)}
    return bits.pop() if len(bits) == 1 else None


def _measured(study: Study, conditions: Sequence[Condition]) -> list[Condition]:
    return [c for c in conditions if study.measured(c)]


def _sweep(
    title: str, label: str, at: Mapping[Condition, float], ticks: Mapping[Condition, str], *, broken: bool = False,
    marked: float | None = None,
) -> Sweep | None:  # fmt: skip
    if len(at) < SHORTEST:
        return None
    broken = broken and any(c.nominal for c in at)
    return Sweep(title=title, label=label, at=at, ticks=ticks, span=_span(at.values()), broken=broken, marked=marked)


def _span(places: Iterable[float]) -> tuple[float, float]:
    found = list(places) or [0.0]
    return min(found), max(found)


def course(study: Study, cast: Cast, arm: str, over: Sweep) -> Line | None:
    """The accuracy of an arm along a sweep, with its interval; None where it has none."""
    found = {x: row for c, x in over.at.items() if (row := study.accuracy(arm, c))}
    if not found:
        return None
    return Line(
        label=short(arm, 18),
        color=cast.colors[arm],
        marker=cast.markers.get(arm),
        x=list(found),
        mean=[row["mean"] for row in found.values()],
        low=[row["mean"] if row["low"] is None else row["low"] for row in found.values()],
        high=[row["mean"] if row["high"] is None else row["high"] for row in found.values()],
    )


def courses(study: Study, cast: Cast, over: Sweep, arms: Sequence[str]) -> list[Line]:
    """Those of several arms."""
    return [line for arm in arms if (line := course(study, cast, arm, over))]


def figures(study: Study, cast: Cast, sweeps: Sequence[Sweep]) -> list[Markup]:
    """A figure a sweep, all with the same axis of accuracies: those that lead with bands and labels, the others thin and grey."""
    reference = floating_point(study)
    leading = {over.title: courses(study, cast, over, cast.leading) for over in sweeps}
    grey = {over.title: courses(study, cast, over, cast.others) for over in sweeps}
    ends = _ends([line for found in (*leading.values(), *grey.values()) for line in found], reference)

    def draw(axes: Axes, over: Sweep) -> None:
        axes.set_title(over.title)
        for line in grey[over.title]:
            axes.plot(line.x, line.mean, color=line.color, linewidth=0.9)
        _own(axes, over, "this hardware")
        accuracies(axes, leading[over.title], ends, reference, over.span)
        _ticks(axes, over)
        axes.set_xlabel(over.label)

    return [
        panel(partial(draw, over=over), size=(4.6, 3.9), describe=f"Accuracy by arm: {over.title}")
        for over in sweeps
        if leading[over.title]
    ]


def multiples(study: Study, cast: Cast, over: Sweep) -> list[tuple[str, Markup]]:
    """A small figure for every arm that does not lead, with the baseline's course in grey behind its own."""
    behind = course(study, cast, study.baseline, over)
    found = {arm: line for arm in cast.others if (line := course(study, cast, arm, over))}
    ends = _ends([*found.values(), *([behind] if behind else [])], None)

    def draw(axes: Axes, line: Line) -> None:
        if behind:
            axes.plot(behind.x, behind.mean, color=GREY, linewidth=1.6)
        axes.fill_between(line.x, _clipped(line.low), _clipped(line.high), color=INK, alpha=0.14, linewidth=0)
        axes.plot(line.x, line.mean, color=INK, linewidth=1.6, clip_on=False)
        frame(axes, ends, over.span, steps=3)
        axes.set_xticks(
            [x for x in over.at.values() if x == round(x)], [t for c, t in over.ticks.items() if over.at[c] == round(over.at[c])]
        )

    return [(arm, panel(partial(draw, line=line), size=(2.7, 1.9), describe=f"Accuracy of {arm}")) for arm, line in found.items()]


def floating_point(study: Study) -> float | None:
    """The accuracy of the digital arm without hardware."""
    row = study.find("digital", "digital")
    return float(row["mean"]) if row else None


def _ends(lines: Sequence[Line], reference: float | None) -> tuple[float, float]:
    return (bottom(lines), top(lines, reference)) if lines else (0.0, 1.0)


def _clipped(values: Sequence[float]) -> list[float]:
    return [min(1.0, max(0.0, value)) for value in values]


def _own(axes: Axes, over: Sweep, label: str) -> None:
    if over.marked is not None and over.span[0] <= over.marked <= over.span[1]:
        axes.axvline(over.marked, color="#4a4a48", linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(
            label,
            (over.marked, 0.02),
            (4, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color="#4a4a48",
            fontsize=9.5,
        )


def _ticks(axes: Axes, over: Sweep) -> None:
    axes.set_xticks(list(over.at.values()), [over.ticks[c] for c in over.at])
    if over.broken:
        mark_break(axes, *sorted(over.at.values())[:2])
