"""A study directory, read and checked: `config.json`, `environment.json`, `rows.jsonl`, and `summary.jsonl` with what the rows say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from reprlib import repr as short
from typing import Any

from galvanic.report.run import Needs, Row, entries, table
from galvanic.report.study_conditions import Condition

ROWS: Needs = {
    "training": ("arm", "seed", "epoch"),
    "digital": ("arm", "seed", "accuracy"),
    "chip": ("arm", "seed", "chip", "condition", "accuracy"),
    "sensitivity": ("arm", "layer", "effect", "side", "chip", "drop"),
    "sharpness": ("arm", "eigenvalue"),
    "landscape": ("arm", "direction", "radius", "loss"),
}
SUMMARY: Needs = {
    "digital": ("arm", "mean", "low", "high"),
    "interval": ("arm", "condition", "metric", "mean", "low", "high"),
    "retention": ("arm", "condition", "mean", "low", "high"),
    "rauc": ("arm", "mean", "low", "high"),
    "recalibration": ("arm", "condition", "difference", "low", "high", "p", "verdict"),
    "comparison": ("arm", "baseline", "condition", "difference", "low", "high", "p", "p_corrected", "verdict"),
}
_LISTS = ("arms", "conditions", "condition_facts", "seeds", "chips", "maps")
_TABLES = ("arm_summaries", "profile")


@dataclass(frozen=True, kw_only=True)
class Study:
    """What one study left behind.

    Args:
        config: what was asked for (arms, conditions, baseline, data, profile, seeds, chips, ...).
        environment: where and how long it ran; empty if there is none.
        rows: the measurements, in the order they were written.
        summary: the statistics of those arms that are complete.
        conditions: what the arms were measured under, in the order of the study.
    """

    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: tuple[Row, ...]
    summary: tuple[Row, ...]
    conditions: tuple[Condition, ...] = field(default=())

    def of(self, kind: str) -> list[Row]:
        """The measurements of one kind, such as "sensitivity"."""
        return [row for row in self.rows if row["kind"] == kind]

    def said(self, kind: str) -> list[Row]:
        """The statistics of one kind, such as "comparison"."""
        return [row for row in self.summary if row["kind"] == kind]

    @cached_property
    def arms(self) -> tuple[str, ...]:
        """Arms that were planned, then those that only the rows know."""
        seen = [str(row["arm"]) for row in (*self.rows, *self.summary) if "arm" in row]
        return tuple(dict.fromkeys([*map(str, self.config.get("arms", [])), *seen]))

    @property
    def baseline(self) -> str:
        """The arm that the others are judged against."""
        return str(self.config.get("baseline", next((row["baseline"] for row in self.said("comparison")), "")))

    @cached_property
    def _found(self) -> dict[tuple[str, ...], Row]:
        keys = ("kind", "arm", "condition", "metric")
        return {tuple(str(row.get(key, "")) for key in keys): row for row in self.summary}

    def find(self, kind: str, arm: str, condition: str = "", metric: str = "") -> Row | None:
        """The one row of the summary that is meant; None where there is none."""
        return self._found.get((kind, arm, condition, metric))

    def accuracy(self, arm: str, condition: Condition) -> Row | None:
        """Mean accuracy of an arm under a condition, with its interval."""
        return self.find("interval", arm, condition.name, "accuracy")

    def measured(self, condition: Condition) -> bool:
        """Whether any arm has statistics under the condition."""
        return any(self.accuracy(arm, condition) for arm in self.arms)


def read_study(folder: Path) -> Study:
    """The study in `folder`.

    Raises:
        FileNotFoundError: `config.json`, `rows.jsonl` or `summary.jsonl` is missing.
        ValueError: a file is damaged, or a row lacks what its kind needs; names the file (and the line).
    """
    path = folder / "config.json"
    config, environment, summary = table(path), folder / "environment.json", folder / "summary.jsonl"
    for key in (*_LISTS, *_TABLES):
        kind = list if key in _LISTS else dict
        if not isinstance(config.get(key, kind()), kind):
            raise ValueError(f"{path}: {key} is {short(config[key])}, expected a {'list' if kind is list else 'table'}")
    rows = entries(folder / "rows.jsonl", ROWS)
    nothing = summary.is_file() and not summary.stat().st_size  # no arm is complete: the study goes on
    known = [Condition.of(facts, str(path)) for facts in config.get("condition_facts", [])]
    names = dict.fromkeys([*map(str, config.get("conditions", [])), *(row["condition"] for row in rows if row["kind"] == "chip")])
    others = [Condition(name=name, known=False) for name in names if name not in {condition.name for condition in known}]
    return Study(
        config=config,
        environment=table(environment) if environment.exists() else {},
        rows=rows,
        summary=() if nothing else entries(summary, SUMMARY),
        conditions=(*known, *others),
    )
