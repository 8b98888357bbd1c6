"""What a run should hold and does not: said on the page instead of left for the reader to notice."""

from galvanic.report import words
from galvanic.report.run import Run
from galvanic.report.summary import by, per_chip

KINDS = {
    "training": "training losses",
    "digital": "accuracy in floating point",
    "age": "accuracy over time",
    "level": "accuracy over the noise level",
    "layer": "errors and signal ranges of the layers",
    "placement": "where each layer runs",
}


def missing(run: Run) -> list[str]:
    """One sentence for each thing that is missing; empty for a complete run."""
    notes = [f"There are no rows for {what}." for kind, what in KINDS.items() if not run.of(kind)]
    notes += [f"Recipe “{name}” has no rows for {what}." for name in run.recipes if (what := _kinds_without(run, name))]
    notes += _short_of_seeds(run) + _short_of_chips(run)
    if not run.environment:
        notes.append("environment.json is missing: the run did not finish.")
    return notes


def _kinds_without(run: Run, recipe: str) -> str:
    kinds = [kind for kind in KINDS if kind not in ("placement", "training") and run.of(kind)]  # calibration does not train
    return words.joined([KINDS[kind] for kind in kinds if not any(row["recipe"] == recipe for row in run.of(kind))])


def _short_of_seeds(run: Run) -> list[str]:
    planned, notes = len(run.config.get("seeds", [])), []
    for (recipe,), rows in by(run.of("age"), "recipe").items():
        found = len({row["seed"] for row in rows})
        if found < planned:
            notes.append(f"Recipe “{recipe}” was evaluated for {found} of {planned} trainings.")
    return notes


def _short_of_chips(run: Run) -> list[str]:
    planned = len(run.config.get("chips", []))
    conditions = by(run.of("age"), "recipe", "age_s", "compensation") | by(run.of("level"), "recipe", "noise_level")
    fewest: dict[str, int] = {}
    for (recipe, *_), rows in conditions.items():
        fewest[recipe] = min([fewest.get(recipe, planned), *map(len, per_chip(rows).values())])
    return [
        f"Recipe “{recipe}” has conditions measured on only {chips} of {planned} chips."
        for recipe, chips in fewest.items()
        if chips < planned
    ]
