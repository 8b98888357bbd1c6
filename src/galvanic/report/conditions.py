"""Which condition the headline speaks of, and who is compared with whom in it."""

from dataclasses import dataclass
from itertools import product

from galvanic.report.compare import Difference, difference
from galvanic.report.run import Row, Run
from galvanic.report.summary import Spread, ages, compensations, spread

BASELINES = ("digital", "ptq")  # recipes that do not train for the hardware


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
