"""Matplotlib figures as inline SVG: no global figure, no outside reference, the same text for the same numbers."""

import re
import warnings
from collections.abc import Callable
from io import StringIO

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLE = {
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
