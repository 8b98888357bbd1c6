"""Further passes through a model within one training step, which leave no trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from galvanic.nn import Analog, analog_layers


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Within it, normalisation works as its mode says, and does not update its running statistics."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    before = [(norm.track_running_stats, norm.momentum) for norm in norms]
    for norm in norms:
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.track_running_stats &= not norm.training
        else:  # instance normalisation updates whatever it has
            norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (tracks, momentum) in zip(norms, before, strict=True):
            norm.track_running_stats, norm.momentum = tracks, momentum


@contextmanager
def digital_products(model: nn.Module) -> Iterator[None]:
    """Within it, analog layers do what their digital ones would, with the same parameters and the same gradients.

    Raises:
        ValueError: there is no analog layer.
    """
    layers = analog_layers(model).values()
    for layer in layers:
        layer.__dict__["forward"] = partial(_digital, layer)  # the layer's own is in its class
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def _digital(layer: Analog, input: Tensor, *given: Any) -> Tensor:
    return layer.digital(input, layer.weight, *layer.how(input, *given))
