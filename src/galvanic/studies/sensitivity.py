"""Which effect of which layer costs how much: every one alone on an otherwise digital network."""

import glob
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from galvanic.nn import analog_layers, convert, evaluate, to_digital
from galvanic.physics import Direct, Kirchhoff, Nonlinearity, Whole
from galvanic.profile import Profile
from galvanic.studies.moving import on_chip, profile_of, with_ranges

ALL = "all"
"""In a row's layer or effect: all of them together."""
_IDENTITY = Nonlinearity()  # keeps the inputs in units of their range, as the output range was calibrated with


def sensitivity(
    model: nn.Module, metric: Callable[[nn.Module], float], *, chips: Iterable[int], level: float | None = None
) -> list[dict[str, Any]]:
    """A row for every layer, effect and chip: what the metric falls by when only this effect of this layer is there.

    All other layers are digital. Rows of layer 'all' have the effect in every layer; those of effect 'all' have all effects of the layer;
    with 'all' for both it is the model as it is, without drift compensation. Effects interact: the drops of single ones need not add up.

    The encoding of the weights, the coding of the inputs, the tiles and the model's own converter ranges stay with an effect, since they
    say what it acts on. What differs from the ideal among the codes and in the product has rows of its own, of side 'encoding',
    'input_coding' or 'product'. A layer of several matrices (attention, recurrent) is one layer. Noise per read comes from the global
    stream: seed it for the same rows again.

    Args:
        model: an analog model; left as it is. Its conditions hold, its age among them: drift shows only in a model that has aged.
        metric: as in `evaluate`.
        chips: numbers of chips.
        level: noise level; the model's own unless given.

    Returns:
        Rows with layer, effect, side ('input', 'weight', 'output', 'encoding', 'input_coding', 'product' or 'all'), chip, noise_level,
        age_s, value, and drop: the digital value minus this one, below 0 where the metric rose.

    Raises:
        ValueError: no analog layer, no chip, a metric that is not one number.
    """
    chips = list(chips)
    conditions = next(iter(analog_layers(model).values())).conditions
    conditions = conditions if level is None else replace(conditions, noise_level=level)
    twin, rows = to_digital(model).eval(), []
    for (layer, side, effect), hardware in _cases({name: profile_of(m) for name, m in on_chip(model).items()}):
        placed = with_ranges(convert(twin, {glob.escape(name): p for name, p in hardware.items()}, chip=0), model)
        for row in evaluate(placed, metric, chips=chips, ages_s=[float(conditions.age_s)], conditions=conditions):
            kept = {key: row[key] for key in ("chip", "noise_level", "age_s", "value")}
            rows.append({"layer": layer, "effect": effect, "side": side, **kept})
    with torch.no_grad():
        digital = float(metric(twin))
    return [{**row, "drop": digital - row["value"]} for row in rows]


def _cases(profiles: Mapping[str, Profile]) -> Iterator[tuple[tuple[str, str, str], dict[str, Profile]]]:
    """((layer, side, effect), hardware of the layers that are not digital), the whole model last."""
    together: dict[tuple[str, str], dict[str, Profile]] = {}
    for layer, profile in profiles.items():
        for (side, effect), alone in _alone(profile).items():
            yield (layer, side, effect), {layer: alone}
            together.setdefault((side, effect), {})[layer] = alone
        yield (layer, ALL, ALL), {layer: profile}
    for (side, effect), hardware in together.items():
        yield (ALL, side, effect), hardware
    yield (ALL, ALL, ALL), dict(profiles)


def _alone(profile: Profile) -> dict[tuple[str, str], Profile]:
    """By side and name: the profile with one effect only."""
    scaled = (_IDENTITY,) if profile.converts("input") else ()
    still = replace(profile, input=scaled, weight=(), output=(), product=Kirchhoff())
    found: dict[tuple[str, str], Profile] = {}
    for side in ("input", "weight", "output"):
        kinds: list[str] = []
        for effect in getattr(profile, side):
            kinds.append(type(effect).__name__)
            count = kinds.count(kinds[-1])
            only: dict[str, Any] = {side: (effect,)}
            found[side, kinds[-1] if count == 1 else f"{kinds[-1]} {count}"] = replace(still, **only)
    others = {
        "product": (Kirchhoff, replace(still, product=profile.product)),
        "encoding": (Direct, replace(still, input_coding=Whole())),
        "input_coding": (Whole, replace(still, encoding=Direct())),
    }
    for side, (ideal, alone) in others.items():
        kind = type(getattr(profile, side))
        if kind is not ideal:
            found[side, kind.__name__] = alone
    return found
