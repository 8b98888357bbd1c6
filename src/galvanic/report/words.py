"""Numbers and names as a reader meets them."""

import math
from typing import Any

HOUR_S, DAY_S, YEAR_S = 3600.0, 86400.0, 365 * 86400.0

RECIPES = {"digital": "ordinary", "ptq": "calibrated", "noise": "hardware-aware"}
TRAININGS = {"digital": "ordinary training", "ptq": "calibrating the converters alone", "noise": "training for the hardware"}
COMPENSATIONS = {"none": "no compensation", "global-drift": "global drift compensation", "batch-norm": "batch-norm recalibration"}


def recipe(name: str) -> str:
    """The plain word for a recipe; a recipe without one keeps its name."""
    return RECIPES.get(name, name)


def training(name: str) -> str:
    """What a recipe does, as a noun in a sentence."""
    return TRAININGS.get(name, f"recipe “{name}”")


def compensation(name: str) -> str:
    """The plain words for a compensation; one without keeps its name."""
    return COMPENSATIONS.get(name, name)


def compensated(name: str) -> str:
    """A compensation as the end of a sentence."""
    return "without compensation" if name == "none" else f"with {compensation(name)}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as percent.

    >>> percent(0.98125), percent(None)
    ('98.1 %', '–')
    """
    return "–" if fraction is None else f"{100 * fraction:.{digits}f} %"


def share(fraction: float | None) -> str:
    """A small share as percent, never rounded down to nothing.

    >>> share(0.0), share(0.00001), share(0.0123)
    ('0 %', '< 0.01 %', '1.2 %')
    """
    if fraction is None:
        return "–"
    if fraction == 0:
        return "0 %"
    if fraction < 1e-4:
        return "< 0.01 %"
    return f"{100 * fraction:.2g} %" if fraction < 0.1 else f"{100 * fraction:.0f} %"


def points(difference: float | None) -> str:
    """A signed difference of two accuracies in percentage points.

    >>> points(0.628), points(-0.0041)
    ('+62.8', '−0.4')
    """
    if difference is None:
        return "–"
    text = f"{100 * abs(difference):.1f}"
    return text if float(text) == 0 else f"{'+' if difference > 0 else '−'}{text}"


def std(deviation: float | None) -> str:
    """A standard deviation of accuracies in percentage points."""
    return "–" if deviation is None else f"{100 * deviation:.1f}"


def age(seconds: float) -> str:
    """An age in the largest unit that fits.

    >>> [age(s) for s in (0, 3600, 86400, 30 * 86400, 365 * 86400)]
    ['0', '1 h', '1 day', '30 days', '1 year']
    """
    if seconds == 0:
        return "0"
    units = {"year": YEAR_S, "day": DAY_S, "h": HOUR_S, "min": 60.0, "s": 1.0}
    unit = next((unit for unit, size in units.items() if seconds >= size), "s")
    amount = f"{seconds / units[unit]:.3g}"
    return f"{amount} {unit}{'s' if unit in ('year', 'day') and amount != '1' else ''}"


def after(seconds: float) -> str:
    """When, in a sentence.

    >>> after(0), after(365 * 86400)
    ('right after programming', '1 year after programming')
    """
    return "right after programming" if seconds == 0 else f"{age(seconds)} after programming"


def duration(seconds: float) -> str:
    """A wall time.

    >>> duration(97.3), duration(7300)
    ('1 min 37 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def value(item: Any) -> str:
    """A setting out of JSON: numbers short, lists cut, tables as `name = value`.

    >>> value({"nu": 0.0310000001, "levels": [1, 2]})
    'nu = 0.031, levels = 1, 2'
    """
    if item is None:
        return "none"
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, float):
        return f"{item:.4g}" if math.isfinite(item) else str(item)
    if isinstance(item, dict):
        name = str(item.get("kind", ""))
        inside = ", ".join(f"{key} = {value(v)}" for key, v in item.items() if key not in ("kind", "source") and v is not None)
        return f"{name} ({inside})" if name and inside else name or inside
    if isinstance(item, list):
        return ", ".join(value(v) for v in item[:12]) + (f", … ({len(item)} in all)" if len(item) > 12 else "")
    return str(item)


def count(numbers: tuple[int, ...]) -> str:
    """One count, or the span of several.

    >>> count((600,)), count((10, 8, 10))
    ('600', '8–10')
    """
    if not numbers:
        return "–"
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def capital(text: str) -> str:
    """The text with a capital first letter and the rest as it is."""
    return text[:1].upper() + text[1:]


def joined(names: list[str]) -> str:
    """Names in a sentence.

    >>> joined(["a", "b", "c"])
    'a, b and c'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
