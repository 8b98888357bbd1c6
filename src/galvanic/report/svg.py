"""Matplotlib figures as inline SVG: no global figure, no outside reference, the same text for the same numbers."""

import re
import warnings
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito, Color Universal Design, 2008: told apart by all common kinds of colour vision.
COLORS = {"digital": "#D55E00", "ptq": "#0072B2", "noise": "#009E73"}
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#5b5b5b")

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's font
    "svg.hashsalt": "galvanic",
    "text.parse_math": False,  # a layer called "$x" is a name, not a formula
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same layout everywhere
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a86",
    "axes.labelcolor": "#4a4a48",
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid.axis": "y",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e5e1",
    "grid.linewidth": 0.8,
    "xtick.color": "#8a8a86",
    "ytick.color": "#8a8a86",
    "xtick.labelcolor": "#4a4a48",
    "ytick.labelcolor": "#4a4a48",
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def colors(recipes: Sequence[str]) -> dict[str, str]:
    """One colour a recipe, the same on every figure of the page."""
    others = [name for name in recipes if name not in COLORS]
    return {name: COLORS[name] if name in COLORS else OTHERS[others.index(name) % len(OTHERS)] for name in recipes}


def short(name: str, length: int = 24) -> str:
    """A name that fits beside a figure."""
    name = " ".join(name.split())
    return name if len(name) <= length else f"{name[: length - 1]}…"


def apart(values: Sequence[float], gap: float, top: float) -> list[float]:
    """The values moved as little as needed to be `gap` apart and below `top`, for labels that must not overlap.

    >>> apart([0.5, 0.5, 0.1], 0.2, 0.6)
    [0.4, 0.6, 0.1]
    """
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    placed = [float(values[i]) for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    ceiling = top
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return [round(placed[order.index(i)], 9) for i in range(len(values))]


def panel(draw: Callable[[Axes], None], *, size: tuple[float, float], describe: str) -> Markup:
    """One figure of `size` inches as an `<svg>` element that fills its container; `describe` is read to who cannot see it."""
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's font may well have it
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return Markup(_inline(text.getvalue(), str(escape(describe))))


def _inline(text: str, label: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)  # its `*` would style the whole page
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    box = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :]
    return f'<svg role="img" aria-label="{label}" {box.group() if box else ""}>{body}'
