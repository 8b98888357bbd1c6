"""A profile for people: its numbers with units and sources, and a plot of each effect."""

import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from galvanic.physics import Nonideality
from galvanic.profile import UNITS, Profile
from galvanic.storage import write_atomic
from galvanic.studies.panels import panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMATS = (".svg", ".png", ".pdf")
_SIDES = ("input", "weight", "output")


def facts(profile: Profile) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """(side, effect, source, [(parameter, value with unit), ...]) of every number; without unit: of full scale."""
    general = (
        "rows",
        "columns",
        "weight_scale",
        "power_of_two_scales",
        "encoding",
        "input_coding",
        "product",
        "input_range",
        "output_range",
    )
    rows = [("tile", "", "", [(name, str(getattr(profile, name))) for name in general])]
    for side in _SIDES:
        rows += [(side, type(effect).__name__, effect.source, _parameters(effect)) for effect in getattr(profile, side)]
    return rows


def _parameters(effect: Nonideality) -> list[tuple[str, str]]:
    shown = []
    for f in dataclasses.fields(effect):
        value = getattr(effect, f.name)
        if f.name == "per" and value is not None:
            shown.append(("drawn per", str(value)))
        elif f.name not in ("source", "per") and value is not None and value is not False:
            name, _, unit = f.name.rpartition("_")
            per = "1/" if name.endswith("_per") else ""
            shown.append((f.name, f"{value} {per}{unit}" if unit in UNITS and name else str(value)))
    return shown


@torch.no_grad()
def draw(profile: Profile, path: Path) -> Path:
    """One panel an effect; returns the path written.

    Raises:
        ValueError: a file name that ends in no format known here.
    """
    from matplotlib.figure import Figure

    if path.suffix not in _FORMATS:
        raise ValueError(f"{path}: a drawing ends in {', '.join(_FORMATS)}")
    effects = [(side, e) for side in _SIDES for e in getattr(profile, side)]
    columns = min(3, max(1, len(effects)))
    rows = -(-max(1, len(effects)) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.3 * rows + 0.5), layout="constrained")
    figure.suptitle(f"{profile.name}: {profile.summary}".replace("$", r"\$"), wrap=True)  # a dollar, not mathematics
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes[max(1, len(effects)) :]:
        ax.set_axis_off()
    if not effects:
        axes[0].text(0.5, 0.5, "no effects", ha="center")
        axes[0].set_axis_off()
    for ax, (side, effect) in zip(axes, effects, strict=False):
        _panel(ax, side, effect, nonnegative=side == "weight" and profile.encoding.nonnegative)
    stream = io.BytesIO()
    figure.savefig(stream, format=path.suffix[1:], dpi=120)
    write_atomic(path, stream.getvalue())
    return path


def _panel(ax: "Axes", side: str, effect: Nonideality, *, nonnegative: bool) -> None:
    """One effect, titled with where it acts and when it is drawn."""
    ax.set_title(f"{side}: {type(effect).__name__}" + (f" (per {effect.per})" if effect.per else ""), fontsize=10)
    panel(effect, ax, torch.linspace(0 if nonnegative else -1.1, 1.0 if nonnegative else 1.1, 401))
