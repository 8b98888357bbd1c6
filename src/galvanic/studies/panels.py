"""What an effect does, as one plot: a transfer curve, a spread over the signal, a course over time, lines or temperature."""

from functools import singledispatch
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from galvanic.physics import (
    Activated,
    Additive,
    Context,
    Correlated,
    Crosstalk,
    DeadLine,
    Drift,
    LogNormalMismatch,
    Nonideality,
    RandomTelegraph,
    Relaxation,
    StuckAt,
    SupplyCoefficient,
    TemperatureCoefficient,
    TimeVarying,
    WriteVerify,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TARGETS = ((0.05, "C2"), (0.3, "C1"), (1.0, "C0"))


@singledispatch
def panel(effect: Nonideality, ax: "Axes", x: Tensor) -> None:
    """Plot the effect on signals `x`; unless something tells more, its transfer curve, and those of five devices where it is random."""
    ax.plot(x, x, color="0.7", lw=1)
    if effect.per is not None and not effect.lines:
        z = effect.draw((5, 1), _generator())
        ax.plot(x, effect.apply(x.expand(5, -1), z.expand(*z.shape[:-1], len(x)), Context()).T, color="C0", lw=0.6, alpha=0.5)
    ax.plot(x, effect.apply(x, None, Context()), color="C0")
    ax.set(xlabel="in (full scale)", ylabel="out (full scale)")


@panel.register(Additive)
def _spread(effect: Additive, ax: "Axes", x: Tensor) -> None:
    for age_s in (0.0, 365 * 86400.0) if effect.after_write else (0.0,):
        sigma: Any = effect.sigma(x, Context(age_s=age_s))
        ax.plot(x, torch.as_tensor(sigma, dtype=x.dtype).expand_as(x), label="1 year" if age_s else "age 0")
    ax.set(xlabel="signal (full scale)", ylabel="standard deviation (full scale)")
    ax.set_ylim(bottom=0)
    if effect.after_write:
        ax.legend(fontsize=8)


@panel.register(Drift)
def _decay(effect: Drift, ax: "Axes", x: Tensor) -> None:
    _over_age(effect, ax, relative=True)
    ax.set(ylabel="g / g just written", ylim=(0, 1.05))


@panel.register(Relaxation)
def _settle(effect: Relaxation, ax: "Axes", x: Tensor) -> None:
    _over_age(effect, ax, relative=False)
    ax.set(ylabel="conductance (full scale)")


def _over_age(effect: Nonideality, ax: "Axes", *, relative: bool) -> None:
    """The median device of three targets, and one standard deviation to either side."""
    t = torch.logspace(0, 7.5, 100)
    for g, color in _TARGETS:
        target = torch.full_like(t, g)
        curves = [effect.apply(target, torch.full_like(t, z), Context(age_s=t, target=target)) for z in (-1.0, 0.0, 1.0)]
        low, middle, high = (c / g if relative else c for c in curves)
        ax.plot(t, middle, color=color, label=f"target {g:g}")
        ax.fill_between(t, low, high, color=color, alpha=0.2, lw=0)
    ax.set(xscale="log", xlabel="age (s)")
    ax.legend(fontsize=8)


@panel.register(StuckAt)
@panel.register(LogNormalMismatch)
@panel.register(RandomTelegraph)
@panel.register(DeadLine)
@panel.register(WriteVerify)
def _histogram(effect: Nonideality, ax: "Axes", x: Tensor) -> None:
    half = torch.full((10000,), 0.5)
    ax.hist(effect.apply(half, effect.draw((10000,), _generator()), Context()).numpy(), bins=60, color="C0", log=True)
    ax.set_ylim(bottom=0.5)
    what = "line that carries" if isinstance(effect, DeadLine) else "device asked for"
    ax.set(xlabel=f"what a {what} 0.5 becomes", ylabel=f"of 10,000 {what.split()[0]}s")


@panel.register(Crosstalk)
def _neighbours(effect: Crosstalk, ax: "Axes", x: Tensor) -> None:
    impulse = torch.zeros(17)
    impulse[8] = 1
    ax.stem(torch.arange(-8, 9), effect.apply(impulse, None, Context()), basefmt="0.7")
    ax.set(xlabel="distance from the line that carries 1", ylabel="signal (full scale)")


@panel.register(Correlated)
def _course(effect: Correlated, ax: "Axes", x: Tensor) -> None:
    shape = (200, 1) if effect.along == "time" else (200,)
    z = effect.draw(shape, _generator())
    ax.plot(effect.apply(torch.zeros(shape), z, Context()).flatten(), color="C0", lw=0.8)
    ax.set(xlabel="vector" if effect.along == "time" else "line", ylabel="noise (full scale)")


@panel.register(TimeVarying)
def _schedule(effect: TimeVarying, ax: "Axes", x: Tensor) -> None:
    end = float(effect.times_s[-1])
    t = torch.linspace(0, 1.1 * end if end > 0 else 1.0, 200, dtype=torch.float64)
    mean, std = effect.mean_at(t).expand_as(t), effect.std_at(t).expand_as(t)
    ax.plot(t, mean, color="C0")
    ax.fill_between(t, mean - std, mean + std, color="C0", alpha=0.2, lw=0)
    ax.set(xlabel="time (s)", ylabel="mean and standard deviation (full scale)")


@panel.register(TemperatureCoefficient)
@panel.register(Activated)
def _warm(effect: Any, ax: "Axes", x: Tensor) -> None:
    t = torch.linspace(effect.reference_K - 40, effect.reference_K + 80, 100)
    _over(effect, ax, t, Context(temperature_K=t))
    ax.set(xlabel="temperature (K)")


@panel.register(SupplyCoefficient)
def _sagging(effect: SupplyCoefficient, ax: "Axes", x: Tensor) -> None:
    v = torch.linspace(0.8, 1.2, 100) * effect.reference_V
    _over(effect, ax, v, Context(supply_V=v))
    ax.set(xlabel="supply (V)")


def _over(effect: Nonideality, ax: "Axes", where: Tensor, at: Context) -> None:
    for level, color in _TARGETS:
        ax.plot(where, effect.apply(torch.full_like(where, level), None, at), color=color, label=f"in {level:g}")
    ax.set(ylabel="out (full scale)")
    ax.legend(fontsize=8)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
