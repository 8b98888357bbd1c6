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
    """Rows of kind interval, digital, retention, rauc, recalibration and comparison; arms that are not complete are left out.

    A comparison is with the baseline, paired by seed and chip; the p values of all arms and conditions of the study are one family.

    Args:
        rows: of a study, finished or not.
        conditions: those it measures.
        baseline: the arm that others are judged against.
    """
    tables = _tables(rows, conditions)
    digital = _digital(rows)
    arms = list(dict.fromkeys(arm for arm, _, _ in tables))
    found: list[Row] = []
    for arm, values in digital.items():
        found.append({"kind": "digital", "arm": arm, **_ends(interval(np.array([list(values.values())]).T))})
    for (arm, condition, metric), table in tables.items():
        found.append({"kind": "interval", "arm": arm, "condition": condition, "metric": metric, **_ends(interval(table))})
    found += [row for arm in arms for row in _of_arm(arm, tables, conditions, digital)]
    return found + list(_comparisons(arms, tables, conditions, baseline))


def _tables(rows: Sequence[Row], conditions: Sequence[Condition]) -> dict[tuple[str, str, str], Table]:
    """(seeds, chips) of every arm, condition and metric that is complete."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["kind"] == "chip":
            groups.setdefault((row["arm"], row["condition"]), []).append(row)
    names = [c.name for c in conditions]
    whole = {
        key: group
        for key, group in groups.items()
        if key[1] in names and len(group) == len({r["seed"] for r in group}) * len({r["chip"] for r in group})
    }
    most = max((len(group) for group in whole.values()), default=0)
    return {
        (arm, condition, metric): by_seed_and_chip(group, metric)
        for (arm, condition), group in whole.items()
        if len(group) == most
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


def _ends(found: Interval) -> Row:
    return {"mean": found.mean, "low": found.low, "high": found.high, "seeds": found.seeds, "chips": found.chips}


def _of_arm(
    arm: str, tables: dict[tuple[str, str, str], Table], conditions: Sequence[Condition], digital: dict[str, dict[int, float]]
) -> Iterator[Row]:
    reference = digital.get("digital")
    accuracy = {c.name: tables[arm, c.name, "accuracy"] for c in conditions if (arm, c.name, "accuracy") in tables}
    if reference is not None:
        full = np.array(list(reference.values()))
        for name, table in accuracy.items():
            if len(full) == len(table):
                kept = np.array([[retention(value, one) for value in chips] for chips, one in zip(table, full, strict=True)])
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


def _area(arm: str, accuracy: dict[str, Table], conditions: Sequence[Condition], full: Any) -> Iterator[Row]:
    """The area under accuracy over the noise level, relative to that of the digital network at full precision."""
    plain = [c for c in conditions if c.name in accuracy and _alike(c, Condition(name="", level=c.level)) and not c.recalibrated]
    if len({c.level for c in plain}) < 2 or len(full) != len(next(iter(accuracy.values()))):
        return
    plain.sort(key=lambda c: c.level)
    levels = [c.level for c in plain]
    seeds, chips = accuracy[plain[0].name].shape
    areas = [[relative_auc(levels, [accuracy[c.name][s][k] for c in plain], full[s]) for k in range(chips)] for s in range(seeds)]
    yield {"kind": "rauc", "arm": arm, **_ends(interval(np.array(areas)))}


def _comparisons(
    arms: list[str], tables: dict[tuple[str, str, str], Table], conditions: Sequence[Condition], baseline: str
) -> Iterator[Row]:
    pairs = [
        (arm, c.name)
        for arm in arms
        for c in conditions
        if arm != baseline
        and (arm, c.name, "accuracy") in tables
        and (baseline, c.name, "accuracy") in tables
        and tables[arm, c.name, "accuracy"].shape == tables[baseline, c.name, "accuracy"].shape
    ]
    found = [compare(tables[arm, name, "accuracy"], tables[baseline, name, "accuracy"]) for arm, name in pairs]
    for (arm, name), judged in zip(pairs, verdicts(found), strict=True):
        yield {"kind": "comparison", "arm": arm, "baseline": baseline, "condition": name, **_facts(judged)}


def _facts(found: Comparison) -> Row:
    names = ("difference", "low", "high", "p", "p_corrected", "effect", "verdict", "seeds", "chips")
    return {name: getattr(found, name) for name in names}
