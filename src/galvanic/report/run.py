"""A run directory, read and checked: `config.json`, `environment.json` and `rows.jsonl`."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

Row = Mapping[str, Any]
Needs = Mapping[str, tuple[str, ...]]
"""The fields, out of `FIELDS`, that a row of each kind must have."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run left behind.

    Args:
        config: what was asked for (data, model, profile, recipes, seeds, chips, ...).
        environment: where and how long it ran; empty if the run was cut short before writing it.
        rows: the measurements, in the order they were written.
    """

    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: tuple[Row, ...]

    def of(self, kind: str) -> list[Row]:
        """The rows of one kind, such as "age"."""
        return [row for row in self.rows if row["kind"] == kind]

    @property
    def recipes(self) -> tuple[str, ...]:
        """Recipes that were planned, then those that only the rows know."""
        seen = [str(row["recipe"]) for row in self.rows if "recipe" in row]
        return tuple(dict.fromkeys([*map(str, self.config.get("recipes", [])), *seen]))


def read(folder: Path) -> Run:
    """The run in `folder`.

    Raises:
        FileNotFoundError: `config.json` or `rows.jsonl` is missing.
        ValueError: a file is empty or damaged, or a row lacks what its kind needs; names the file (and the line).
    """
    environment = folder / "environment.json"
    return Run(
        config=_config(folder / "config.json"),
        environment=table(environment) if environment.exists() else {},
        rows=entries(folder / "rows.jsonl", NEEDS),
    )


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: not a run directory, or the run never started")
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise ValueError(f"{path} is empty: the run recorded nothing there")
    return text


def table(path: Path) -> dict[str, Any]:
    """The object in a JSON file; errors name the file and the line, as those of `read`."""
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {short(value)}, expected an object {{...}}")
    return {clean(key): clean(item) for key, item in value.items()}


def _config(path: Path) -> dict[str, Any]:
    config = table(path)
    for key, kind in {"recipes": list, "seeds": list, "chips": list, "profile": dict, "recipe_summaries": dict}.items():
        if not isinstance(config.get(key, kind()), kind):
            raise ValueError(f"{path}: {key} is {short(config[key])}, expected a {'list' if kind is list else 'table'}")
    return config


def entries(path: Path, needs: Needs) -> tuple[Row, ...]:
    """The rows of a file, one a line; each has what its kind needs. A last line that was cut off is left out."""
    lines = _text(path).splitlines() if path.is_file() else [_text(path)]
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # cut off in mid-write: the rows before it stand
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
        rows.append(_checked(clean(row), needs, f"{path}, line {number}"))
    if not rows:
        raise ValueError(f"{path} holds no complete row: the run recorded nothing yet")
    return tuple(rows)


def clean(value: Any) -> Any:
    """The value with every string printable: lone surrogates and control characters replaced.

    >>> clean({"a": ["x\\x00y"]})
    {'a': ['x\ufffdy']}
    """
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode("utf-8")
        return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return value


def is_number(value: Any) -> bool:
    """Whether a value out of JSON is a finite number (true and false are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_label(value: Any) -> bool:
    return isinstance(value, str | int)


def _is_positive(value: Any) -> bool:
    return is_number(value) and value >= 0


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("recipe", "layer", "compensation"), (_is_name, "a name")),
    **dict.fromkeys(("arm", "baseline", "condition", "metric", "verdict", "effect", "side", "direction"), (_is_name, "a name")),
    "seed": (_is_label, "a number"),
    "chip": (_is_label, "a number"),
    "age_s": (_is_positive, "seconds >= 0"),
    "noise_level": (_is_positive, "a number >= 0"),
    **dict.fromkeys(("epoch", "mean", "difference", "drop", "eigenvalue", "radius", "distance", "loss"), (is_number, "a number")),
    **dict.fromkeys(("low", "high", "p", "p_corrected"), (lambda v: v is None or is_number(v), "a number or null")),
    "accuracy": (lambda v: is_number(v) and 0 <= v <= 1, "a fraction 0..1"),
    "n_test": (lambda v: is_number(v) and v >= 1, "a count >= 1"),
}

NEEDS: Needs = {
    "training": ("recipe", "seed", "epoch"),
    "digital": ("recipe", "seed", "accuracy", "n_test"),
    "age": ("recipe", "seed", "chip", "age_s", "compensation", "accuracy", "n_test"),
    "level": ("recipe", "seed", "chip", "noise_level", "accuracy", "n_test"),
    "layer": ("recipe", "seed", "chip", "age_s", "layer"),
    "placement": ("layer",),
}


def _checked(row: Any, needs: Needs, where: str) -> Row:
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        raise ValueError(f"{where}: {short(row)} is not a row, expected an object with a kind")
    for field in needs.get(row["kind"], ()):
        fits, expected = FIELDS[field]
        if field not in row:
            raise ValueError(f"{where}: a row of kind {short(row['kind'])} has no {field}")
        if not fits(row[field]):
            raise ValueError(f"{where}: {field} is {short(row[field])}, expected {expected}")
    return row
