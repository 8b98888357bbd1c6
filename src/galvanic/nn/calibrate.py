"""Converter ranges from data."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from galvanic.nn.analog import Analog, magnitudes
from galvanic.nn.convert import analog_layers
from galvanic.physics import Context
from galvanic.physics.value import brief
from galvanic.ranges import Dynamic, FromData


def inputs_of(batch: Any) -> Tensor:
    """The inputs of a batch: itself, or the first of a tuple.

    Raises:
        ValueError: it is neither, or empty.
    """
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(x, Tensor) or not x.numel():
        raise ValueError(f"a batch is a tensor of inputs or a tuple that begins with one, and is not empty; got {brief(batch)}")
    return x


@torch.no_grad()
def calibrate_ranges(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Set every input and output range that comes from data, in place, from what the digital twin computes on some batches.

    The ranges belong to the design, not to one chip: nothing random takes part.

    Args:
        model: an analog model; it is run in evaluation mode and returned to the mode it was in.
        batches: inputs, or tuples that begin with them.

    Raises:
        ValueError: no batch came, or a signal is not finite.
    """
    layers = analog_layers(model)
    modes = {module: module.training for module in model.modules()}
    for layer in layers.values():
        layer.observer = {"input": [], "output": []}
    try:
        model.eval()
        seen = sum(1 for batch in batches if model(inputs_of(batch)) is not None)
        if not seen:
            raise ValueError("calibrate_ranges: the batches are empty")
        for name, layer in layers.items():
            _set_ranges(name, layer)
    finally:
        for layer in layers.values():
            layer.observer = None
        for module, mode in modes.items():
            module.training = mode
    return model


def _set_ranges(name: str, layer: Analog) -> None:
    observer = layer.observer or {}
    if not observer["input"]:
        return  # a layer that these inputs do not reach
    inputs = torch.cat(observer["input"])
    outputs = torch.cat(observer["output"] or [inputs])
    if not (inputs.isfinite().all() and outputs.isfinite().all()):
        raise ValueError(f"calibrate_ranges: the signal of {name} is not finite; is there a NaN in the data?")
    r_x = _choose(layer, "input", inputs)
    if layer.profile.converts("input") and r_x is None:
        r_x = inputs.max()  # dynamic: the worst vector decides what the outputs can reach
    _choose(layer, "output", outputs / (1 if r_x is None else r_x))


def _choose(layer: Analog, side: str, sample: Tensor) -> Tensor | None:
    """Set the range of a side, and say what it is (None: found per vector, or the side has no effects)."""
    range_ = getattr(layer.profile, f"{side}_range")
    effects = getattr(layer.profile, side)
    if not layer.profile.converts(side) or isinstance(range_, Dynamic):
        return None
    if isinstance(range_, FromData):
        still = Context(**layer.at)

        def convert(x: Tensor) -> Tensor:
            for effect in effects:
                x = effect.apply(x, None, still)
            return x

        largest = sample.max()
        chosen = range_.choose(magnitudes(sample, 1 << 20), convert)  # torch.quantile takes no more than 16 million
        silent = 1.0 if largest == 0 else largest  # any range does for silence, but a tiny one would block the gradient
        layer.set_range(side, chosen if chosen > 0 else silent)
    return layer.full_scale(side)
