"""Converter ranges from data."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from galvanic.nn.analog import Analog, magnitudes
from galvanic.nn.convert import analog_layers
from galvanic.physics import Context
from galvanic.physics.value import brief
from galvanic.ranges import FromData


def inputs_of(batch: Any) -> Tensor:
    """The inputs of a batch: itself, or the first of a tuple.

    Raises:
        ValueError: it is neither, or empty.
    """
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(x, Tensor) or not x.numel():
        raise ValueError(f"a batch is a tensor of inputs or a tuple that begins with one, and is not empty; got {brief(batch)}")
    return x


def answer(model: nn.Module, batch: Any) -> Any:
    """What a model answers to a batch: inputs, a tuple that begins with them, or a mapping of keyword arguments."""
    return model(**batch) if isinstance(batch, Mapping) else model(inputs_of(batch))


@torch.no_grad()
def calibrate_ranges(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Set every input and output range that comes from data, in place, from what the digital twin computes on some batches.

    The ranges belong to the design, not to one chip: nothing random takes part.

    Args:
        model: an analog model; it is run in evaluation mode and returned to the mode it was in.
        batches: inputs, tuples that begin with them, or mappings of keyword arguments; run through twice, for the inputs of each layer and
            then for its outputs.

    Raises:
        ValueError: no batch came, or a signal is not finite.
    """
    layers = analog_layers(model)
    modes = {module: module.training for module in model.modules()}
    batches = tuple(batches) if isinstance(batches, Iterator) else batches  # they are run through twice
    try:
        model.eval()
        for side in ("input", "output"):  # what an output converter sees follows from the range of the inputs
            for layer in layers.values():
                layer.observer = {side: []}
            if not sum(1 for batch in batches if answer(model, batch) is not None):
                raise ValueError("calibrate_ranges: the batches are empty")
            for name, layer in layers.items():
                _set_range(name, layer, side)
    finally:
        for layer in layers.values():
            layer.observer = None
        for module, mode in modes.items():
            module.training = mode
    return model


def _set_range(name: str, layer: Analog, side: Literal["input", "output"]) -> None:
    seen = (layer.observer or {})[side]
    if not seen:
        return  # a layer that these inputs do not reach, or without converters on this side
    sample = torch.cat(seen)
    if not sample.isfinite().all():
        raise ValueError(f"calibrate_ranges: the signal of {name} is not finite; is there a NaN in the data?")
    _choose(layer, side, sample)


def _choose(layer: Analog, side: str, sample: Tensor) -> None:
    """Set the range of a side where it comes from data."""
    range_ = getattr(layer.profile, f"{side}_range")
    effects = [effect for effect in getattr(layer.profile, side) if not effect.lines]  # a sample has no neighbours
    if layer.profile.converts(side) and isinstance(range_, FromData):
        still = Context(**layer.at)

        def convert(x: Tensor) -> Tensor:
            for effect in effects:
                x = effect.apply(x, None, still)
            return x

        largest = sample.max()
        chosen = range_.choose(magnitudes(sample, 1 << 20), convert)  # torch.quantile takes no more than 16 million
        silent = 1.0 if largest == 0 else largest  # any range does for silence, but a tiny one would block the gradient
        chosen = chosen if chosen > 0 else torch.as_tensor(silent)
        layer.set_range(side, torch.exp2(chosen.log2().ceil()) if layer.profile.power_of_two_scales else chosen)
