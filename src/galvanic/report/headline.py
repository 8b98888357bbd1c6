"""The first thing on the page: what came out, in sentences and big numbers that stay true whatever the numbers are."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from . import words
from .compare import Difference, difference
from .run import Row, Run
from .summary import SEEDS_FOR_INTERVAL, Spread, ages, compensations, spread

BASELINES = ("digital", "ptq")  # recipes that do not train for the hardware
NOUNS = {"digits": ("reads", "digits"), "mnist": ("reads", "digits")}


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A big number: whose it is, the number, what it is, and what qualifies it; `recipe` gives the colour."""

    title: str
    number: str
    what: str
    notes: tuple[str, ...]
    recipe: str | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """The condition the headline speaks of: the oldest age that all measured recipes share, first compensation."""

    age_s: float
    compensation: str

    @classmethod
    def of(cls, run: Run) -> "Point | None":
        rows = run.of("age")
        if not rows:
            return None
        first = compensations(rows)[0]
        per_recipe = [set(ages(r for r in rows if r["recipe"] == name and r["compensation"] == first)) for name in run.recipes]
        measured = [found for found in per_recipe if found]
        return cls(age_s=max(set.intersection(*measured) or set.union(*measured)), compensation=first)


def rows_at(run: Run, age_s: float, compensation: str, recipe: str | None = None) -> list[Row]:
    """The accuracies at one age under one compensation, of one recipe or of all."""
    here = [row for row in run.of("age") if row["age_s"] == age_s and row["compensation"] == compensation]
    return [row for row in here if recipe in (None, row["recipe"])]


def subject(run: Run) -> str | None:
    """The recipe that trains for the hardware: "noise", or the first that is no baseline."""
    trained = [name for name in run.recipes if name not in BASELINES]
    return "noise" if "noise" in trained else trained[0] if trained else None


def floating_point(run: Run) -> tuple[str, Spread] | None:
    """The recipe that stands for the network without hardware, and its accuracy in floating point."""
    rows = run.of("digital")
    names = [name for name in run.recipes if any(row["recipe"] == name for row in rows)]
    if not names:
        return None
    name = "digital" if "digital" in names else names[0]
    return name, spread([row for row in rows if row["recipe"] == name])


def comparisons(run: Run, age_s: float, compensation: str) -> list[Difference]:
    """Every trained recipe against every baseline, then calibration against ordinary training."""
    trained = [name for name in run.recipes if name not in BASELINES]
    rows = rows_at(run, age_s, compensation)
    found = [difference(rows, *pair) for pair in [*product(trained, BASELINES), ("ptq", "digital")]]
    return [each for each in found if each]


def sentences(run: Run) -> list[str]:
    """What came out: in floating point, on the chip as it is, on the chip when trained for it, with compensation."""
    point = Point.of(run)
    found = [_in_floating_point(run)]
    if point:
        chip = str(run.config.get("profile", {}).get("name", "analog"))
        found += [_as_it_is(run, point, chip), _trained(run, point, chip)]
        found += [_compensated(run, point.age_s, name) for name in compensations(run.of("age")) if name != point.compensation]
    return [sentence for sentence in found if sentence]


def caution(run: Run) -> str:
    """What the intervals of this run can and cannot say."""
    most = max((len({row["seed"] for row in run.of("age") if row["recipe"] == name}) for name in run.recipes), default=0)
    if most >= SEEDS_FOR_INTERVAL:
        return (
            f"A difference is claimed only where its 95 % interval over the {most} trainings excludes zero. "
            "Each comparison stands alone; none is corrected for there being several."
        )
    number = {1: "One training", 2: "Two trainings"}.get(most)
    return number and (
        f"{number} per recipe give{'s' if most == 1 else ''} no interval over trainings: what is said holds for the networks trained "
        "here, over chips. A difference is claimed only where in every training its 95 % interval over chips excludes zero."
    ) or ""


def _in_floating_point(run: Run) -> str | None:
    found = floating_point(run)
    if not found:
        return None
    name, accuracy = found
    verb, noun = NOUNS.get(str(run.config.get("data")), ("classifies", "examples"))
    whose = "" if name == "digital" else f" ({words.training(name)})"
    return (
        f"In floating point, without any analog hardware, the network{whose} {verb} {words.percent(accuracy.mean)} "
        f"of the {words.count(accuracy.n_test)} test {noun} correctly."
    )


def _as_it_is(run: Run, point: Point, chip: str) -> str | None:
    rows = rows_at(run, point.age_s, point.compensation, "digital")
    if not rows:
        return None
    return (
        f"Put as it is on a simulated {chip} chip, {words.after(point.age_s)} and {_with(point.compensation)}, "
        f"it gets {words.percent(spread(rows).mean)} right."
    )


def _trained(run: Run, point: Point, chip: str) -> str | None:
    name = subject(run)
    rows = rows_at(run, point.age_s, point.compensation, name) if name else []
    if not name or not rows:
        return None
    who = "Trained for that hardware" if name == "noise" else f"Trained by recipe {name}"
    said = bool(rows_at(run, point.age_s, point.compensation, "digital"))
    where = "" if said else f", on a simulated {chip} chip, {words.after(point.age_s)} and {_with(point.compensation)}"
    return f"{who}{where}, it gets {words.percent(spread(rows).mean)} right{_verdicts(run, name, point.age_s, point.compensation, ': ')}."


def _compensated(run: Run, age_s: float, compensation: str) -> str | None:
    measured = [(name, rows) for name in run.recipes if (rows := rows_at(run, age_s, compensation, name))]
    parts = [f"{words.training(name)} {words.percent(spread(rows).mean)}" for name, rows in measured]
    trained = [place for place, (name, _) in enumerate(measured) if name == subject(run)]
    for place in trained:
        verdicts = _verdicts(run, measured[place][0], age_s, compensation, "")
        parts[place] += f" ({verdicts})" if verdicts else ""
    return f"With {words.compensation(compensation)} at that age: {', '.join(parts)}." if parts else None


def _with(compensation: str) -> str:
    return "without compensation" if compensation == "none" else f"with {words.compensation(compensation)}"


def _verdicts(run: Run, name: str, age_s: float, compensation: str, before: str) -> str:
    found = [each.phrase for each in comparisons(run, age_s, compensation) if each.subject == name]
    return before + words.joined(found) if found else ""


def tiles(run: Run) -> list[Tile]:
    """Floating point first, then each recipe on the chip at the headline's age."""
    point, reference = Point.of(run), floating_point(run)
    first = [_reference_tile(*reference)] if reference else []
    return first + [tile for name in run.recipes if point and (tile := _tile(run, name, point))]


def _reference_tile(name: str, accuracy: Spread) -> Tile:
    note = f"{words.training(name)}, {'mean of ' if accuracy.seeds > 1 else ''}{accuracy.seeds} training{'s' if accuracy.seeds > 1 else ''}"
    return Tile(title="no hardware", number=words.percent(accuracy.mean), what="correct in floating point", notes=(note,))


def _tile(run: Run, name: str, point: Point) -> Tile | None:
    rows = rows_at(run, point.age_s, point.compensation, name)
    if not rows:
        return None
    accuracy, others = spread(rows), [c for c in compensations(run.of("age")) if c != point.compensation]
    floating = [row for row in run.of("digital") if row["recipe"] == name]
    return Tile(
        title=words.recipe(name),
        number=words.percent(accuracy.mean),
        what=f"correct, {words.after(point.age_s)}, {_with(point.compensation)}",
        notes=(
            _spread_note(accuracy),
            *_compensated_notes(run, name, point.age_s, others),
            *([f"{words.percent(spread(floating).mean)} in floating point"] if floating else []),
        ),
        recipe=name,
    )


def _spread_note(accuracy: Spread) -> str:
    chips = f"{accuracy.seeds} training{'s' if accuracy.seeds > 1 else ''} × {words.count(accuracy.chips)} chips"
    return f"± {100 * accuracy.std:.1f} points over {chips}" if accuracy.std is not None else f"one value ({chips})"


def _compensated_notes(run: Run, name: str, age_s: float, others: Sequence[str]) -> list[str]:
    found = [(other, rows_at(run, age_s, other, name)) for other in others]
    return [f"{words.percent(spread(rows).mean)} with {words.compensation(other)}" for other, rows in found if rows]
