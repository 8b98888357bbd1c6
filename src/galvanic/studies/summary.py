"""What the rows of a study say: intervals, retention, areas, and verdicts against the baseline."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from galvanic.studies.conditions import Condition
from galvanic.studies.metrics import relative_auc, retention
from galvanic.studies.statistics import Comparison, Interval, Table, by_seed_and_chip, compare, interval, verdicts

Row = dict[str, Any]
METRICS = ("accuracy", "top5", "nll", "ece")


def summarise(rows: Sequence[Row], conditions: Sequence[Condition], baseline: str) -> list[Row]:
    """Rows of kind interval, digital, retention, rauc, recalibration and comparison.

    An arm that lacks a seed or chip of another is not complete yet, and left out. A comparison is with the baseline, paired by seed and
    chip; the p values of all arms and conditions of the study are one family.

    Args:
        rows: of a study, finished or not.
        conditions: those it measures.
        baseline: the arm that others are judged against.
    """
    tables = _tables(rows, conditions)
    full = _full(rows)
    arms = list(dict.fromkeys(arm for arm, _, _ in tables))
    found: list[Row] = []
    for arm, values in _digital(rows).items():
        found.append({"kind": "digital", "arm": arm, **_ends(interval(np.array([list(values.values())]).T))})
    for (arm, condition, metric), table in tables.items():
        found.append({"kind": "interval", "arm": arm, "condition": condition, "metric": metric, **_ends(interval(table))})
    found += [row for arm in arms for row in _of_arm(arm, tables, conditions, full)]
    return found + list(_comparisons(arms, tables, conditions, baseline))


def _tables(rows: Sequence[Row], conditions: Sequence[Condition]) -> dict[tuple[str, str, str], Table]:
    """(seeds, chips) of every arm, condition and metric that is complete."""
    measured = [row for row in rows if row["kind"] == "chip"]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in measured:
        groups.setdefault((row["arm"], row["condition"]), []).append(row)
    names = [c.name for c in conditions]
    whole = len({row["seed"] for row in measured}) * len({row["chip"] for row in measured})
    return {
        (arm, condition, metric): by_seed_and_chip(group, metric)
        for (arm, condition), group in groups.items()
        if condition in names and len(group) == whole
        for metric in METRICS
        if metric in group[0]
    }


def _digital(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """Accuracy without hardware, by arm and seed."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["kind"] == "digital":
            found.setdefault(row["arm"], {})[row["seed"]] = row["accuracy"]
    return found


def _full(rows: Sequence[Row]) -> list[float] | None:
    """Accuracy of the digital network at full precision, by ascending seed; None where a seed has none, or 0, of which nothing is kept."""
    known = _digital(rows).get("digital", {})
    seeds = sorted({row["seed"] for row in rows if row["kind"] == "chip"})
    return [known[s] for s in seeds] if all(known.get(s) for s in seeds) else None


def _ends(found: Interval) -> Row:
    return {"mean": found.mean, "low": found.low, "high": found.high, "seeds": found.seeds, "chips": found.chips}


def _of_arm(
    arm: str, tables: dict[tuple[str, str, str], Table], conditions: Sequence[Condition], full: list[float] | None
) -> Iterator[Row]:
    accuracy = {c.name: tables[arm, c.name, "accuracy"] for c in conditions if (arm, c.name, "accuracy") in tables}
    if full is not None:
        for name, table in accuracy.items():
            kept = [[retention(value, one) for value in chips] for chips, one in zip(table, full, strict=True)]
            yield {"kind": "retention", "arm": arm, "condition": name, **_ends(interval(kept))}
        yield from _area(arm, accuracy, conditions, full)
    for c in conditions:
        raw = next((o for o in conditions if c.recalibrated and not o.recalibrated and _alike(o, c)), None)
        if raw is not None and c.name in accuracy and raw.name in accuracy:
            gain = compare(accuracy[c.name], accuracy[raw.name])
            yield {"kind": "recalibration", "arm": arm, "condition": raw.name, **_facts(gain)}


def _alike(a: Condition, b: Condition) -> bool:
    keys = ("noise", "level", "theta", "bits", "age_s", "temperature_K")
    return all(getattr(a, key) == getattr(b, key) for key in keys)


def _area(arm: str, accuracy: dict[str, Table], conditions: Sequence[Condition], full: list[float]) -> Iterator[Row]:
    """The area under accuracy over the noise level, relative to that of the digital network at full precision."""
    plain = [c for c in conditions if c.name in accuracy and _alike(c, Condition(name="", level=c.level)) and not c.recalibrated]
    plain.sort(key=lambda c: c.level)
    levels = [c.level for c in plain]
    if len(set(levels)) > 1:
        curves = np.stack([accuracy[c.name] for c in plain], axis=-1)  # (seeds, chips, levels)
        areas = [[relative_auc(levels, curve.tolist(), one) for curve in chips] for chips, one in zip(curves, full, strict=True)]
        yield {"kind": "rauc", "arm": arm, **_ends(interval(areas))}


def _comparisons(
    arms: list[str], tables: dict[tuple[str, str, str], Table], conditions: Sequence[Condition], baseline: str
) -> Iterator[Row]:
    pairs = [
        (arm, c.name)
        for arm in arms
        for c in conditions
        if arm != baseline and (arm, c.name, "accuracy") in tables and (baseline, c.name, "accuracy") in tables
    ]
    found = [compare(tables[arm, name, "accuracy"], tables[baseline, name, "accuracy"]) for arm, name in pairs]
    for (arm, name), judged in zip(pairs, verdicts(found), strict=True):
        yield {"kind": "comparison", "arm": arm, "baseline": baseline, "condition": name, **_facts(judged)}


def _facts(found: Comparison) -> Row:
    names = ("difference", "low", "high", "p", "p_corrected", "effect", "verdict", "seeds", "chips")
    return {name: getattr(found, name) for name in names}
