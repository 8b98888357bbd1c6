"""The tables of the page, as plain rows of numbers; the template only formats them."""

from collections.abc import Iterable, Mapping
from typing import Any

from galvanic.report import words
from galvanic.report.run import Row, Run, is_number
from galvanic.report.summary import ages, average, by, compensations, spreads

SIDES = {"input": "inputs (DAC side)", "weight": "weights (memory cells)", "output": "outputs (ADC side)"}


def over_age(run: Run) -> list[dict[str, Any]]:
    """Recipe x compensation x age: the spread of the accuracy."""
    rows, order = run.of("age"), {name: place for place, name in enumerate(run.recipes)}
    ways = {name: place for place, name in enumerate(compensations(rows))}
    found = spreads(rows, "recipe", "compensation", "age_s")
    keys = sorted(found, key=lambda key: (order[key[0]], ways[key[1]], key[2]))
    return [{"recipe": key[0], "compensation": key[1], "age_s": key[2], "spread": found[key]} for key in keys]


def over_level(run: Run) -> list[dict[str, Any]]:
    """Recipe x noise level: the spread of the accuracy."""
    order = {name: place for place, name in enumerate(run.recipes)}
    found = spreads(run.of("level"), "recipe", "noise_level")
    keys = sorted(found, key=lambda key: (order[key[0]], key[1]))
    return [{"recipe": key[0], "noise_level": key[1], "spread": found[key]} for key in keys]


def layers(run: Run) -> list[str]:
    """Layer names in the order of the network."""
    return list(dict.fromkeys(row["layer"] for kind in ("placement", "layer") for row in run.of(kind)))


def ranges(run: Run) -> list[dict[str, Any]]:
    """Layer x recipe at the youngest age: largest signal, full scale and clipped share at each converter."""
    rows = run.of("layer")
    youngest = ages(rows)[:1]
    groups = by([row for row in rows if row["age_s"] in youngest], "layer", "recipe")
    keys = [(layer, recipe) for layer in layers(run) for recipe in run.recipes if (layer, recipe) in groups]
    return [
        {"layer": key[0], "recipe": key[1], "input": _range(groups[key], "input"), "output": _range(groups[key], "output")} for key in keys
    ]


def _range(rows: Iterable[Row], side: str) -> dict[str, Any]:
    rows = list(rows)
    peaked = [row for row in rows if is_number(row.get(f"{side}_max"))]
    ranged = [row for row in peaked if is_number(row.get(f"{side}_range")) and row[f"{side}_range"] > 0]
    fills = [row[f"{side}_max"] / row[f"{side}_range"] for row in ranged]
    return {
        "largest": max((row[f"{side}_max"] for row in peaked), default=None),
        "full_scale": average(rows, f"{side}_range"),
        "fill": max(fills, default=None),
        "clipped": average(rows, f"{side}_clipped"),
    }


def placement(run: Run) -> dict[str, Any]:
    """Every layer's place, and how many layers and parameters run on the chip."""
    rows = run.of("placement")
    analog = [row for row in rows if row.get("where") == "analog"]
    return {
        "rows": rows,
        "analog": len(analog),
        "tiles": sum(row["tiles"] for row in analog if is_number(row.get("tiles"))),
        "parameters": _parameters(analog),
        "all_parameters": _parameters(rows),
    }


def _parameters(rows: Iterable[Row]) -> int:
    return int(sum(row["parameters"] for row in rows if is_number(row.get("parameters"))))


def effects(profile: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the hardware does to a signal, in its order: where, which effect, its numbers, their source."""
    return [_effect(place, item) for side, place in SIDES.items() for item in _list(profile.get(side))]


def _effect(place: str, item: Any) -> dict[str, str]:
    if not isinstance(item, dict):
        return {"place": place, "name": words.value(item), "numbers": "", "source": ""}
    numbers = {key: each for key, each in item.items() if key not in ("kind", "source") and each is not None}
    return {
        "place": place,
        "name": words.value(item.get("kind", "unnamed")),
        "numbers": words.value(numbers),
        "source": words.value(item.get("source") or "not stated"),
    }


def settings(profile: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rest of a profile: tile size, encoding, ranges and whatever else it says."""
    left_out = {*SIDES, "name", "summary"}
    return [(str(key), words.value(item)) for key, item in profile.items() if key not in left_out]


def _list(item: Any) -> list[Any]:
    return item if isinstance(item, list) else [] if item is None else [item]
