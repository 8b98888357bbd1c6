"""From a digital model to one on a chip and back, and what became of every layer."""

import copy
import difflib
import fnmatch
from collections.abc import Mapping
from typing import Any

from torch import nn

from galvanic.nn.analog import Analog
from galvanic.nn.layers import ANALOG_FORM
from galvanic.nn.placed import Chip
from galvanic.physics import Conditions
from galvanic.physics.value import brief
from galvanic.profile import Profile

_DIGITAL_FORM = {analog: digital for digital, analog in ANALOG_FORM.items()}


def convert(model: nn.Module, profile: Profile | Mapping[str, Profile | None], *, chip: int | None) -> nn.Module:
    """A copy of the model whose Linear and Conv layers sit on a chip; the digital model is untouched.

    Parameter names and shapes stay, tied weights stay tied, and a digital state dict loads strictly. `describe` says what became of each
    layer. A weight that the model uses without calling its layer is not on the chip.

    Args:
        model: any module; a model that is analog already is converted anew.
        profile: the hardware, or glob patterns of layer names -> hardware (None: digital); the first pattern that matches decides, and a
            layer that none matches stays digital.
        chip: the number of the chip; None for an anonymous one, drawn on the model's device from its global stream.

    Raises:
        ValueError: nothing to convert; a pattern that decides nothing; a tile too small for a kernel; a chip that is no whole number.
    """
    patterns = _patterns(profile)
    model = to_digital(model)
    names = {name: module for name, module in model.named_modules() if type(module) in ANALOG_FORM}
    deciding = {name: next((p for p in patterns if fnmatch.fnmatchcase(name, p)), None) for name in names}
    _refuse_idle_patterns(patterns, deciding)
    for name, module in names.items():
        chosen = patterns.get(deciding[name] or "")
        if chosen is not None:
            _install(module, chosen, name, chip)
    _close_bypasses(model)
    return model


def to_digital(model: nn.Module) -> nn.Module:
    """A copy of the model with every analog layer digital again, parameters bit for bit."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Analog):
            _uninstall(module)
        if isinstance(module, nn.TransformerEncoderLayer) and hasattr(module, "_galvanic_activation"):
            module.activation_relu_or_gelu = module.__dict__.pop("_galvanic_activation")
    return model


def _install(module: nn.Module, profile: Profile, name: str, chip: int | None) -> None:
    """Change the class of the layer in place: hooks, ties and every reference to it stay."""
    own = set(module.__dict__)
    module.__class__ = ANALOG_FORM[type(module)]
    assert isinstance(module, Analog)
    module.install(profile, name)
    module.place(Chip(chip), Conditions())
    module._installed = tuple(set(module.__dict__) - own)


def _uninstall(module: Analog) -> None:
    for name in module._installed:
        del module.__dict__[name]
    del module.__dict__["_installed"]
    module.__class__ = _DIGITAL_FORM[type(module)]  # type: ignore[assignment]
    for side in ("input", "output"):
        module._parameters.pop(f"{side}_range", None)
        module._buffers.pop(f"{side}_range", None)
        module._non_persistent_buffers_set.discard(f"{side}_range")


def _patterns(profile: Profile | Mapping[str, Profile | None]) -> dict[str, Profile | None]:
    patterns: dict[str, Profile | None] = dict(profile) if isinstance(profile, Mapping) else {"*": profile}
    for given in patterns.values():
        if given is not None and not isinstance(given, Profile):
            raise ValueError(f"a profile is a Profile, not {brief(given)}; load_profile(name) gives one")
    if patterns == {"*": None}:
        raise ValueError("no profile was given; load_profile(name) gives one")
    return patterns


def _refuse_idle_patterns(patterns: Mapping[str, Any], deciding: Mapping[str, str | None]) -> None:
    """Every pattern must decide some layer, and there must be layers."""
    names = list(deciding)
    if not names:
        raise ValueError("the model has no Linear or Conv layer that could go on a chip; describe(model) says why")
    for pattern in patterns:
        if pattern in deciding.values():
            continue
        if fnmatch.filter(names, pattern):
            raise ValueError(f"pattern {pattern!r} decides no layer: earlier patterns match all of its own; put it first")
        else:
            close = difflib.get_close_matches(pattern, names, n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else f"; layers: {', '.join(names) or 'none'}"
            raise ValueError(f"pattern {pattern!r} matches no Linear or Conv layer{hint}")


def _close_bypasses(model: nn.Module) -> None:
    """In evaluation, TransformerEncoderLayer hands its weights to a fused kernel that calls no layer: keep it on the layers' path."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(isinstance(m, Analog) for m in module.modules()):
            module._galvanic_activation = module.activation_relu_or_gelu  # type: ignore[assignment]
            module.activation_relu_or_gelu = 0


def analog_layers(model: nn.Module) -> dict[str, Analog]:
    """The analog layers by name, in the order of the model.

    Raises:
        ValueError: there is none.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Analog)}
    if not layers:
        raise ValueError("the model has no analog layer: convert(model, profile, chip=...) makes one")
    return layers


def describe(model: nn.Module) -> list[dict[str, Any]]:
    """A row for every layer that holds parameters: where it runs and why, and how it fills its tiles.

    Keys: layer, type, where ('analog' | 'digital'), why, parameters, and for analog layers rows and columns of its matrix (of one group),
    tiles, utilisation (cells used of those in its tiles; 1 where tiles have no size).
    """
    rows = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own:
            known = [p for p in own if not isinstance(p, nn.parameter.UninitializedParameter)]
            rows.append({"layer": name, "type": _type(module), **_placement(module), "parameters": sum(p.numel() for p in known)})
    return rows


def _type(module: nn.Module) -> str:
    return _DIGITAL_FORM[type(module)].__name__ if isinstance(module, Analog) else type(module).__name__


def _placement(module: nn.Module) -> dict[str, Any]:
    if not isinstance(module, Analog):
        return {"where": "digital", "why": _why_digital(module), "rows": None, "columns": None, "tiles": 0, "utilisation": None}
    blocks, rows, columns = module.matrix()
    p = module.profile
    tiles = blocks * len(module.cuts()) * -(-columns // (p.columns or columns))
    size = (p.rows or -(-rows // len(module.cuts()))) * (p.columns or columns)
    used = min(1.0, blocks * rows * columns / (tiles * size))
    why = f"weights on {p.name}" + ("" if module.bias is None else ", bias digital")
    return {"where": "analog", "why": why, "rows": rows, "columns": columns, "tiles": tiles, "utilisation": used}


def _why_digital(module: nn.Module) -> str:
    kind = type(module)
    if kind in ANALOG_FORM:
        return "no profile was chosen for it"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "its shape is not known before the first call: convert after it"
    if hasattr(module, "parametrizations"):
        return "its weight is parametrised, which has no analog form yet"
    if isinstance(module, tuple(ANALOG_FORM)):
        return f"{kind.__name__} changes what its base class does, and is not taken for it"
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm):
        return "normalisation: scale and shift are digital"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "a look-up, not a product"
    return "no analog form of this layer"
