"""Verdicts, intervals and probabilities as a reader meets them."""

from collections.abc import Callable
from typing import Any

from galvanic.report import words
from galvanic.report.run import Row

FILTERS = ("verdict", "sign", "tone", "between", "apart", "around", "plain", "probability")

SIGNS = {"better": "▲", "worse": "▼", "no difference shown": "○", "not judged": "–"}
TONES = {"better": "better", "worse": "worse"}
UNTRIED = "not judged"
_FAR = 10.0


def verdict(row: Row) -> str:
    """What may be said of a comparison: with one training there is no test, and so no verdict.

    >>> verdict({"verdict": "better", "p": 0.01}), verdict({"verdict": "no difference shown", "p": None})
    ('better', 'not judged')
    """
    return UNTRIED if row["p"] is None else str(row["verdict"])


def sign(row: Row) -> str:
    """The verdict as a sign, for who does not see its colour."""
    return SIGNS.get(verdict(row), "–")


def tone(row: Row) -> str:
    """The class of style of the verdict."""
    return TONES.get(verdict(row), "soft")


def between(row: Row) -> str:
    """The interval of a share, in percent; a dash where there is none.

    >>> between({"low": 0.8412, "high": 0.8651}), between({"low": None, "high": None}), between({"low": -1e9, "high": 1.2})
    ('84.1 – 86.5 %', '–', '< −1000 – 120.0 %')
    """
    return "–" if row["low"] is None or row["high"] is None else f"{_end(row['low'], _unsigned)} – {_end(row['high'], _unsigned)} %"


def apart(row: Row) -> str:
    """The interval of a difference of shares, in percentage points.

    >>> apart({"low": -0.012, "high": 0.034}), apart({"low": -0.01, "high": 1e30})
    ('−1.2 to +3.4', '−1.0 to > +1000')
    """
    return "–" if row["low"] is None or row["high"] is None else f"{_end(row['low'], words.points)} to {_end(row['high'], words.points)}"


def around(row: Row) -> str:
    """The interval of a number of no unit.

    >>> around({"low": 0.412, "high": 0.473})
    '0.412 – 0.473'
    """
    return "–" if row["low"] is None or row["high"] is None else f"{plain(row['low'])} – {plain(row['high'])}"


def plain(number: float | None) -> str:
    """A number of no unit, to three digits after the point at most.

    >>> plain(0.41234), plain(1234.5), plain(None)
    ('0.412', '1.23e+03', '–')
    """
    if number is None:
        return "–"
    return (f"{number:.3f}" if abs(number) < 100 else f"{number:.3g}").replace("-", "−", 1)


def probability(p: Any) -> str:
    """A p value.

    >>> probability(0.0312), probability(0.0000012), probability(None)
    ('0.031', '< 0.001', '–')
    """
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _end(share: float, written: Callable[[float], str]) -> str:
    """An end of an interval; beyond ten times everything it says no more than that."""
    if abs(share) <= _FAR:
        return written(share)
    return f"{'<' if share < 0 else '>'} {written(_FAR if share > 0 else -_FAR).removesuffix('.0')}"


def _unsigned(share: float) -> str:
    return words.percent(share).removesuffix(" %").replace("-", "−")
