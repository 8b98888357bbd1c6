"""The big numbers under the headline."""

from collections.abc import Sequence
from dataclasses import dataclass

from galvanic.report import words
from galvanic.report.conditions import Point, floating_point, rows_at
from galvanic.report.run import Run
from galvanic.report.summary import Spread, compensations, spread


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A big number: whose it is, the number, what it is, and what qualifies it; `recipe` gives the colour."""

    title: str
    number: str
    what: str
    notes: tuple[str, ...]
    recipe: str | None = None


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
        what=f"correct, {words.after(point.age_s)}, {words.compensated(point.compensation)}",
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
