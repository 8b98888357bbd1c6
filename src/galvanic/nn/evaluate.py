"""What a model is worth on chips it has not seen, and what each of its layers does to the signal."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from galvanic.nn.analog import Analog
from galvanic.nn.chips import at, program
from galvanic.nn.compensate import Compensation, compensate
from galvanic.nn.convert import analog_layers, copied
from galvanic.physics import Conditions, Context
from galvanic.physics.value import brief


@torch.no_grad()
def evaluate(
    model: nn.Module,
    metric: Callable[[nn.Module], float],
    *,
    chips: Iterable[int],
    writes: int = 1,
    ages_s: Sequence[float] = (0.0,),
    conditions: Conditions | None = None,
    compensation: Compensation | None = None,
) -> list[dict[str, Any]]:
    """A row for every chip, write and age: the metric of a copy of the model that sits there, in evaluation mode.

    Args:
        model: an analog model; it is left as it is.
        metric: what is measured, of the model it is given, which it leaves as it is.
        chips: numbers of chips; report on others than those trained on.
        writes: how often each chip is written.
        ages_s: seconds since the write.
        conditions: temperature, noise level ...; those of the model unless given. Their age is replaced by those of `ages_s`.
        compensation: applied at every age before the measurement.

    Returns:
        Rows with chip, write, age_s, noise_level, temperature_K, compensation, value.

    Raises:
        ValueError: no chip, write or age; a metric that is not one number.
    """
    chips, ages_s = _listed("chips", chips), _listed("ages_s", ages_s)
    conditions = conditions or next(iter(analog_layers(model).values())).conditions
    if writes < 1:
        raise ValueError(f"evaluate: writes = {writes}: each chip is written once or more")
    rows = []
    fresh = copied(model).eval()
    for chip in chips:
        for write in range(writes):
            for age_s in ages_s:
                there = replace(conditions, age_s=age_s)
                placed = fresh if compensation is None else copied(fresh)  # a compensation may change what belongs to all chips
                at(program(placed, chip, write), there)
                if compensation is not None:
                    compensate(placed, compensation)
                rows.append(_row(chip, write, there, compensation, metric(placed)))
    return rows


def _listed(name: str, values: Any) -> list[Any]:
    listed = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else []
    if not listed or None in listed:
        raise ValueError(f"evaluate: {name} = {brief(values)}: one number or more in a list")
    return listed


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"evaluate: the metric gives {brief(value)}, not one number") from None


def _row(chip: int, write: int, there: Conditions, compensation: Compensation | None, value: float) -> dict[str, Any]:
    row: dict[str, Any] = {"chip": chip, "write": write, "age_s": float(there.age_s), "noise_level": float(there.noise_level)}
    return row | {
        "temperature_K": float(there.temperature_K),
        "compensation": "none" if compensation is None else compensation.name,
        "value": _number(value),
    }


@torch.no_grad()
def inspect(model: nn.Module, x: Tensor) -> list[dict[str, Any]]:
    """A row for every analog layer that `x` reaches: how wrong its product is, and how its signals sit in its converters.

    Keys: layer; error, the RMS difference between its analog and its digital product of the same input, over the RMS of the digital one
    without bias; input_max, the largest input; input_range; input_clipped, the share of inputs beyond it; output_max, output_range and
    output_clipped likewise for the tiles' results, in units of one cell. Ranges are None where they are found per vector, or not needed.
    """
    rows: dict[str, dict[str, Any]] = {}
    hooks = []
    for name, layer in analog_layers(model).items():

        def look(layer: Analog, inputs: tuple[Tensor, ...], y: Tensor, name: str = name) -> None:
            rows[name] = {"layer": name, **_signals(layer, inputs[0], y, layer.how(*inputs))}

        hooks.append(layer.register_forward_hook(look))
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return list(rows.values())


def _signals(layer: Analog, x: Tensor, y: Tensor, how: tuple[Any, ...]) -> dict[str, Any]:
    exact = layer.digital(x, layer.weight, *how)
    bias = 0 if layer.bias is None else layer._broadcast(layer.bias)
    context = Context(**layer.at)
    u, _, unit = layer.enter(x, context)
    written = layer.written(context)
    results = layer.in_cells(layer.results(u, written, *how), written, unit)
    currents = torch.cat([y.flatten() for lanes in results for passes in lanes for y in passes]).abs()
    return {
        "error": float((y - exact).square().mean().sqrt() / (exact - bias).square().mean().sqrt().clamp(min=1e-12)),
        **_against("input", x.abs(), layer.full_scale("input")),
        **_against("output", currents, layer.full_scale("output")),
    }


def _against(side: str, magnitudes: Tensor, full_scale: Tensor | None) -> dict[str, Any]:
    clipped = None if full_scale is None else float((magnitudes > full_scale).float().mean())
    return {
        f"{side}_max": float(magnitudes.max()),
        f"{side}_range": None if full_scale is None else float(full_scale),
        f"{side}_clipped": clipped,
    }
