"""A trained network on other hardware than that it was calibrated for."""

import glob
from collections.abc import Callable

from torch import nn

from galvanic.nn import Analog, Projection, analog_layers, convert, to_digital
from galvanic.nn.projection import Composite
from galvanic.profile import Profile


def moved(model: nn.Module, change: Callable[[Profile], Profile], chip: int) -> nn.Module:
    """A copy of an analog model on changed hardware, in evaluation mode, with the converter ranges that it has."""
    hardware: dict[str, Profile | None] = {glob.escape(name): change(profile_of(module)) for name, module in on_chip(model).items()}
    return with_ranges(convert(to_digital(model), hardware, chip=chip).eval(), model)


def on_chip(model: nn.Module) -> dict[str, nn.Module]:
    """What `convert` put on the chip, by name: layers, and modules of several matrices."""
    kinds = (Composite, Analog)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds) and not isinstance(m, Projection)}


def profile_of(module: nn.Module) -> Profile:
    """The hardware of a module on the chip."""
    return next(m.profile for m in module.modules() if isinstance(m, Analog))


def with_ranges(model: nn.Module, source: nn.Module) -> nn.Module:
    """The model with the converter ranges of another one's layers, where both have one."""
    given = analog_layers(source)
    for name, layer in analog_layers(model).items():
        for side in ("input", "output"):
            value = given[name].stored_range(side) if layer.profile.converts(side) else None
            if value is not None:
                layer.set_range(side, value)
    return model
