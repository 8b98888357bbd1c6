"""Many chips in one call."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from galvanic.nn.chips import age, program
from galvanic.nn.convert import analog_layers, copied
from galvanic.physics.value import brief


def ensemble(model: nn.Module, x: Tensor, *, chips: Iterable[int], write: int = 0, age_s: float = 0.0) -> Any:
    """What the model answers to `x` on each of several chips, (chips, \\*output), by `torch.vmap` over their draws.

    Noise per read is new on every chip. Gradients reach the parameters. It is one batched product a layer, for accelerators and for
    functions of many chips; on a CPU, which gains nothing by that, a loop over `program` is as fast or faster (`benchmarks/scaling.py`).

    Args:
        model: an analog model; it is left as it is. Its conditions hold, but for the age.
        x: inputs, the same for all chips.
        chips: their numbers.
        write: which write of each chip.
        age_s: seconds since the write.

    Raises:
        ValueError: no chip; a drift compensation, which belongs to one chip.
    """
    numbers = list(chips)
    if not numbers:
        raise ValueError(f"ensemble: chips = {brief(chips)}: one number or more")
    layers = analog_layers(model)
    gained = [name for name, layer in layers.items() if layer.gain is not None]
    if gained:
        raise ValueError(f"ensemble: layer {gained[0]} has the drift compensation of one chip; program(model, ...) forgets it")
    draws = [_draws(model, chip, write, age_s) for chip in numbers]
    stacked = {name: {key: torch.stack([d[name][key] for d in draws]) for key in draws[0][name]} for name in layers}
    names = list(layers)
    placed = age(program(_shallow(model), numbers[0], write), age_s)
    copies = analog_layers(placed)

    def one(drawn: dict[str, dict[Any, Tensor]]) -> Any:
        for name in names:
            copies[name]._draws = drawn[name]
        return placed(x)

    if not any(stacked.values()):  # nothing differs but what is new at every read
        return tree_map(lambda *parts: torch.stack(parts), *[placed(x) for _ in numbers])
    return torch.vmap(one, randomness="different")(stacked)


def _shallow(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares their parameters, so that gradients reach those of the model."""
    return copied(model, {id(p): p for p in model.parameters()})


def _draws(model: nn.Module, chip: int, write: int, age_s: float) -> dict[str, dict[Any, Tensor]]:
    placed = age(program(_shallow(model), chip, write), age_s)
    return {name: dict(layer._draws) for name, layer in analog_layers(placed).items()}
