"""Where a model sits: on which chip, how long after the write, under which conditions, with which reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from galvanic.nn.convert import analog_layers
from galvanic.nn.placed import Chip, Reads
from galvanic.physics import Conditions
from galvanic.physics.value import brief


def program(model: nn.Module, chip: int | None = None, write: int = 0) -> nn.Module:
    """Write the weights to a chip, in place, at age 0; other conditions stay. Drift compensation is forgotten.

    Args:
        model: an analog model.
        chip: its number; None for a fresh anonymous chip, drawn on the model's own device from its global stream (training).
        write: which write of this chip; another number renews what is drawn per write, and keeps what was fabricated.
    """
    where = Chip(chip, write)
    for layer in analog_layers(model).values():
        layer.place(where, layer.conditions if layer.conditions.age_s == 0 else replace(layer.conditions, age_s=0.0))
    return model


def age(model: nn.Module, seconds: float, *, snapshot: int = 0) -> nn.Module:
    """Let the chip be `seconds` old, counted from the first possible read after the write, in place; slow noise is drawn anew."""
    for layer in analog_layers(model).values():
        layer.place(replace(layer.chip, snapshot=snapshot), replace(layer.conditions, age_s=seconds), renew=("snapshot",))
    return model


def at(model: nn.Module, conditions: Conditions, *, snapshot: int = 0) -> nn.Module:
    """Put the chip under conditions (age, temperature, noise level ...), in place; slow noise is drawn anew."""
    for layer in analog_layers(model).values():
        layer.place(replace(layer.chip, snapshot=snapshot), conditions, renew=("snapshot",))
    return model


def fluctuate(model: nn.Module, levels: Tensor | None) -> nn.Module:
    """Give each example of the batches to come a noise level of its own, in place: a factor on all that is drawn at its reads.

    What is drawn less often (a weight's noise) belongs to the whole chip and stays as it is.

    Args:
        model: an analog model.
        levels: (n,), n the size of a batch, without a gradient; None for the same level everywhere.

    Raises:
        ValueError: they are not one finite number from 0 on for each example; at a call, the signal of a layer has another length (a
            recurrent layer multiplies the inputs of all times at once).
    """
    if levels is not None:
        if not isinstance(levels, Tensor) or levels.ndim != 1 or not bool((levels.isfinite() & (levels >= 0)).all()):
            raise ValueError(f"fluctuate: levels are one finite number from 0 on for each example, (n,), not {brief(levels)}")
        levels = levels.detach()
    for layer in analog_layers(model).values():
        layer.levels = levels
    return model


@contextmanager
def reads(model: nn.Module, mode: Reads) -> Iterator[nn.Module]:
    """Within it, noise per read is `fresh` in every product (as always), `frozen` (one draw per place and shape kept), or `off`.

    Frozen noise of cells is the frozen output noise it amounts to, whose size still follows the input: not a fixed matrix.
    """
    if mode not in ("fresh", "frozen", "off"):
        raise ValueError(f"reads are 'fresh', 'frozen' or 'off', not {mode!r}")
    layers = analog_layers(model).values()
    before = [layer.reads for layer in layers]
    for layer in layers:
        layer.reads, layer._frozen = mode, {}
    try:
        yield model
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.reads, layer._frozen = old, {}
