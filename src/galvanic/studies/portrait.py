"""A profile for people: its numbers with units and sources, and a plot of each effect."""

import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from galvanic.physics import Additive, Context, Drift, LogNormalMismatch, Nonideality, StuckAt
from galvanic.profile import UNITS, Profile
from galvanic.storage import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMATS = (".svg", ".png", ".pdf")
_SIDES = ("input", "weight", "output")


def facts(profile: Profile) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """(side, effect, source, [(parameter, value with unit), ...]) of every number; without unit: of full scale."""
    general = ("rows", "columns", "weight_scale", "encoding", "product", "input_range", "output_range")
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
            unit = f.name.rpartition("_")[2]
            shown.append((f.name, f"{value} {unit}" if unit in UNITS and f.name != unit else str(value)))
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
    """What the effect does: a transfer curve, a spread over the signal, or a decay over time."""
    ax.set_title(f"{side}: {type(effect).__name__}" + (f" (per {effect.per})" if effect.per else ""), fontsize=10)
    x = torch.linspace(0 if nonnegative else -1.1, 1.0 if nonnegative else 1.1, 401)
    if isinstance(effect, Drift):
        _decay(ax, effect)
    elif isinstance(effect, Additive):
        _spread(ax, effect, x)
    elif isinstance(effect, StuckAt | LogNormalMismatch):
        _histogram(ax, effect)
    else:
        ax.plot(x, x, color="0.7", lw=1)
        ax.plot(x, effect.apply(x, None, Context()), color="C0")
        ax.set(xlabel="in (full scale)", ylabel="out (full scale)")


def _decay(ax: "Axes", effect: Drift) -> None:
    t = torch.logspace(0, 7.5, 100)
    for g, color in ((0.05, "C2"), (0.3, "C1"), (1.0, "C0")):
        target = torch.full_like(t, g)
        curves = [effect.apply(target, torch.full_like(t, z), Context(age_s=t, target=target)) / g for z in (-1.0, 0.0, 1.0)]
        ax.plot(t, curves[1], color=color, label=f"target {g:g}")
        ax.fill_between(t, curves[0], curves[2], color=color, alpha=0.2, lw=0)
    ax.set(xscale="log", xlabel="age (s)", ylabel="g / g just written", ylim=(0, 1.05))
    ax.legend(fontsize=8)


def _spread(ax: "Axes", effect: Additive, x: Tensor) -> None:
    for age_s in (0.0, 365 * 86400.0) if effect.after_write else (0.0,):
        sigma: Any = effect.sigma(x, Context(age_s=age_s))
        ax.plot(x, torch.as_tensor(sigma, dtype=x.dtype).expand_as(x), label="1 year" if age_s else "age 0")
    ax.set(xlabel="signal (full scale)", ylabel="standard deviation (full scale)")
    ax.set_ylim(bottom=0)
    if effect.after_write:
        ax.legend(fontsize=8)


def _histogram(ax: "Axes", effect: Nonideality) -> None:
    half = torch.full((10000,), 0.5)
    z = effect.draw((10000,), torch.Generator().manual_seed(0))
    ax.hist(effect.apply(half, z, Context()).numpy(), bins=60, color="C0", log=True)
    ax.set(xlabel="what a device asked for 0.5 becomes", ylabel="of 10,000 devices")
