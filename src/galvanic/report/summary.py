"""Mean and spread out of rows: chips within trainings (seeds), and what intervals they allow."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from galvanic.report.run import Row, is_number

SEEDS_FOR_INTERVAL = 3  # two trainings say nothing reliable about a third


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One accuracy measured on several chips by several trainings.

    Args:
        mean: mean over seeds of the mean over chips.
        std: standard deviation over all seed x chip values; None for a single value.
        low: the worst of them.
        interval: 95 % interval of the mean with the seeds as units; None below three seeds.
        seeds: number of trainings.
        chips: number of chips of each training, one entry where all have the same.
        values: how many seed x chip values there are.
        n_test: test examples behind one value, one entry where all have the same.
    """

    mean: float
    std: float | None
    low: float
    interval: tuple[float, float] | None
    seeds: int
    chips: tuple[int, ...]
    values: int
    n_test: tuple[int, ...]


def by(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows grouped by the values of `keys`, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def per_chip(rows: Iterable[Row], field: str = "accuracy") -> dict[Hashable, dict[Hashable, float]]:
    """One value per seed and chip; repeated measurements of a chip (several writes) are averaged first.

    Rows without a chip, of a network that was not on hardware, count as one chip.
    """
    seeds: dict[Hashable, dict[Hashable, float]] = {}
    for (seed,), of_seed in by(rows, "seed").items():
        chips: dict[Hashable, list[float]] = {}
        for row in of_seed:
            chips.setdefault(row.get("chip"), []).append(row[field])
        seeds[seed] = {chip: float(np.mean(values)) for chip, values in chips.items()}
    return seeds


def spread(rows: Sequence[Row]) -> Spread:
    """Mean and spread of the accuracy over the seeds and chips of `rows` (one recipe in one condition)."""
    seeds = per_chip(rows)
    values = [value for chips in seeds.values() for value in chips.values()]
    means = [float(np.mean(list(chips.values()))) for chips in seeds.values()]
    return Spread(
        mean=float(np.mean(means)),
        std=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        low=min(values),
        interval=interval(means) if len(means) >= SEEDS_FOR_INTERVAL else None,
        seeds=len(seeds),
        chips=tuple(sorted({len(chips) for chips in seeds.values()})),
        values=len(values),
        n_test=tuple(sorted({int(row["n_test"]) for row in rows})),
    )


def spreads(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], Spread]:
    """The spread of every group of rows, such as `spreads(rows, "recipe", "age_s")`."""
    return {key: spread(group) for key, group in by(rows, *keys).items()}


def interval(units: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of independent `units` by Student's t; None for fewer than two."""
    if len(units) < 2:
        return None
    freedom = len(units) - 1
    t = float(stdtrit(freedom, 0.975))  # Student's t, two-sided 95 %
    mean, half = float(np.mean(units)), t * float(np.std(units, ddof=1)) / len(units) ** 0.5
    return mean - half, mean + half


def average(rows: Iterable[Row], field: str) -> float | None:
    """Mean over the rows in which `field` is a finite number; None if it is in none."""
    found = [row[field] for row in rows if is_number(row.get(field))]
    return float(np.mean(found)) if found else None


def ages(rows: Iterable[Row]) -> list[float]:
    """The ages measured, youngest first."""
    return sorted({float(row["age_s"]) for row in rows})


def compensations(rows: Iterable[Row]) -> list[str]:
    """The compensations measured, "none" first."""
    return sorted(dict.fromkeys(row["compensation"] for row in rows), key=lambda name: name != "none")
