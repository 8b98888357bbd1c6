"""From a digital model to one on a chip and back, and what became of every layer."""

import copy
import difflib
import fnmatch
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from galvanic.nn.adaptive import LearnedEffect, simulate
from galvanic.nn.analog import Analog
from galvanic.nn.layers import ANALOG_FORM, analog_form
from galvanic.nn.placed import Chip
from galvanic.nn.projection import Composite, Projection
from galvanic.physics import Conditions
from galvanic.physics.value import brief, tensors_in
from galvanic.profile import Profile

_DIGITAL_FORM = {analog: digital for digital, analog in ANALOG_FORM.items()}
_LAZY: dict[type[nn.Module], type[nn.Module]] = {
    lazy: getattr(lazy, "cls_to_become")  # noqa: B009
    for lazy in vars(nn.modules).values()
    if isinstance(lazy, type) and issubclass(lazy, nn.Module) and getattr(lazy, "cls_to_become", None) in ANALOG_FORM
}


def convert(model: nn.Module, profile: Profile | Mapping[str, Profile | None], *, chip: int | None) -> nn.Module:
    """A copy of the model whose linear, convolution, recurrent and attention layers sit on a chip; the digital model is untouched.

    Parameter names and shapes stay, tied and parametrised weights stay what they are, and a digital state dict loads strictly. A lazily
    built layer goes on the chip after its first call, which is digital. `describe` says what became of each layer. A weight that the
    model uses without calling its layer is not on the chip.

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
    names = {name: module for name, module in model.named_modules() if _digital_form(module) is not None}
    deciding = {name: next((p for p in patterns if fnmatch.fnmatchcase(name, p)), None) for name in names}
    _refuse_idle_patterns(patterns, deciding)
    Chip(chip)  # refuses what is no number before anything else happens
    for name, module in names.items():
        chosen = patterns.get(deciding[name] or "")
        if chosen is not None and type(module) in _LAZY:
            _install_later(module, chosen, name, chip)
        elif chosen is not None:
            _install(module, chosen, name, chip)
    _close_bypasses(model)
    return simulate(model, False)  # hardware makes its own noise


def to_digital(model: nn.Module) -> nn.Module:
    """A copy of the model with every analog layer digital again, parameters bit for bit."""
    model = copied(model)
    for module in list(model.modules()):
        if isinstance(module, Composite) or (isinstance(module, Analog) and not isinstance(module, Projection)):
            _uninstall(module)
        if isinstance(module, nn.TransformerEncoderLayer) and hasattr(module, "_galvanic_activation"):
            module.activation_relu_or_gelu = module.__dict__.pop("_galvanic_activation")
        if isinstance(module, nn.TransformerEncoder) and hasattr(module, "_galvanic_nested"):
            module.use_nested_tensor = module.__dict__.pop("_galvanic_nested")
        if module.__dict__.pop("_galvanic_later", None) is not None:
            _forget_first_call(module)
    return simulate(model, True)


def copied(model: nn.Module, shared: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, which shares computed parameters of physics, since torch copies no result, and whatever is listed by its `id`."""
    physics = [t for m in model.modules() if isinstance(m, Analog) for t in tensors_in(m.profile) if not t.is_leaf]
    try:
        return copy.deepcopy(model, {id(t): t for t in physics} | (shared or {}))
    except RuntimeError as error:
        raise ValueError(
            f"the model cannot be copied ({str(error).split('. ')[0]}); weight_norm and spectral_norm by hooks make such weights, those of "
            "torch.nn.utils.parametrizations do not"
        ) from error


def _digital_form(module: nn.Module) -> type[nn.Module] | None:
    """The class with an analog form that a module is of; None for any other. A parametrised module is of the class it was made from."""
    kind = _LAZY.get(type(module), type(module))
    if parametrize.is_parametrized(module) and analog_form(kind) is None:
        kind = kind.__bases__[0]
    return None if analog_form(kind) is None else kind


def _install(module: nn.Module, profile: Profile, name: str, chip: int | None) -> None:
    """Change the class of the layer in place: hooks, ties and every reference to it stay."""
    own, before = set(module.__dict__), type(module)
    form: Any = analog_form(_digital_form(module) or before)
    if parametrize.is_parametrized(module):  # its class holds the properties that compute the parameters
        form = _with_properties(form, before)
    module.__class__ = form
    module.install(profile, name)  # type: ignore[operator]
    for layer in module.modules():
        if isinstance(layer, Analog):
            layer.place(Chip(chip), Conditions())
    module._digital_class = before  # type: ignore[assignment]
    module._installed = tuple(set(module.__dict__) - own)  # type: ignore[assignment]


def _with_properties(base: type[nn.Module], parametrised: type[nn.Module]) -> type[nn.Module]:
    """A parametrised class of another base."""
    own = {k: v for k, v in vars(parametrised).items() if k not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), own)


def _install_later(module: nn.Module, profile: Profile, name: str, chip: int | None) -> None:
    """A lazy layer has its weight after its first call."""
    module.__dict__["_galvanic_later"] = (profile, name, chip)
    module.register_forward_hook(_first_call)


def _first_call(module: nn.Module, args: Any, output: Any) -> None:
    _forget_first_call(module)
    _install(module, *module.__dict__.pop("_galvanic_later"))


def _forget_first_call(module: nn.Module) -> None:
    for key, hook in list(module._forward_hooks.items()):
        if hook is _first_call:
            del module._forward_hooks[key]


def _uninstall(module: nn.Module) -> None:
    if isinstance(module, Composite):
        module.uninstall()
    digital: Any = module._digital_class
    if parametrize.is_parametrized(module) and analog_form(digital) is not None:  # parametrised since it was converted
        digital = _with_properties(digital, type(module))
    elif not parametrize.is_parametrized(module) and analog_form(digital) is None:  # the parametrisation was removed since then
        digital = digital.__bases__[0]
    for name in module._installed:  # type: ignore[union-attr]
        del module.__dict__[name]
    del module.__dict__["_installed"]
    module.__class__ = digital
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
        raise ValueError("the model has no layer that could go on a chip; describe(model) says why")
    for pattern in patterns:
        if pattern in deciding.values():
            continue
        if fnmatch.filter(names, pattern):
            raise ValueError(f"pattern {pattern!r} decides no layer: earlier patterns match all of its own; put it first")
        else:
            close = difflib.get_close_matches(pattern, names, n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else f"; layers: {', '.join(names) or 'none'}"
            raise ValueError(f"pattern {pattern!r} matches no layer that could go on a chip{hint}")


def _close_bypasses(model: nn.Module) -> None:
    """In evaluation, TransformerEncoderLayer hands its weights to a fused kernel that calls no layer: keep it on the layers' path."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, Analog) for m in module.modules()):
            module._galvanic_nested, module.use_nested_tensor = module.use_nested_tensor, False  # type: ignore[assignment]
        if isinstance(module, nn.TransformerEncoderLayer) and any(isinstance(m, Analog) for m in module.modules()):
            module._galvanic_activation = module.activation_relu_or_gelu  # type: ignore[assignment]
            module.activation_relu_or_gelu = 0


def analog_layers(model: nn.Module) -> dict[str, Analog]:
    """The analog layers by name, in the order of the model.

    Raises:
        ValueError: there is none, or one waits for its first call.
    """
    waiting = [name for name, m in model.named_modules() if "_galvanic_later" in m.__dict__]
    if waiting:
        raise ValueError(f"layer {waiting[0]} is lazy and has no weight yet: call the model once, which puts it on the chip")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Analog)}
    if not layers:
        raise ValueError("the model has no analog layer: convert(model, profile, chip=...) makes one")
    return layers


def describe(model: nn.Module) -> list[dict[str, Any]]:
    """A row for every layer that holds parameters: where it runs and why, and how it fills its tiles.

    Keys: layer, type, where ('analog' | 'digital'), why, parameters, and for analog layers rows and columns of its matrix (of one group),
    tiles, utilisation (cells used of those in its tiles; 1 where tiles have no size), padding (cells of its tiles left unused).
    """
    rows, inside = [], _parts_of_layers(model)
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        own = _parameters(module)
        if own or isinstance(module, Analog):
            known = [p for p in own if not isinstance(p, nn.parameter.UninitializedParameter)]
            rows.append({"layer": name, "type": _type(module), **_placement(module), "parameters": sum(p.numel() for p in known)})
    return rows


def _parts_of_layers(model: nn.Module) -> set[int]:
    """The modules whose parameters are told with those of another: within a composite, and parametrisations."""
    composites = [
        m for c in model.modules() if isinstance(c, Composite) for m in c.modules() if not isinstance(m, Projection) and m is not c
    ]
    parametrised = [m for c in model.modules() if parametrize.is_parametrized(c) for m in c.parametrizations.modules()]  # type: ignore[union-attr]
    return {id(m) for m in composites + parametrised}


def _parameters(module: nn.Module) -> list[Any]:
    if isinstance(module, Projection):
        return [p for p in (module.weight, module.bias) if p is not None]
    if isinstance(module, Composite):  # what no projection holds: biases of attention
        told = {id(getattr(p._owner[0], n)) for p in module.modules() if isinstance(p, Projection) for n in p._names if n}
        return [p for p in module.parameters(recurse=False) if id(p) not in told]
    hidden = module.parametrizations.parameters() if parametrize.is_parametrized(module) else ()  # type: ignore[union-attr]
    return [*module.parameters(recurse=False), *hidden]


def _type(module: nn.Module) -> str:
    if isinstance(module, Projection):
        return type(module._owner[0]).__name__.removeprefix("Analog")
    kind = module._digital_class if isinstance(module, Analog | Composite) else type(module)
    return str(kind.__name__)  # type: ignore[union-attr]


def _placement(module: nn.Module) -> dict[str, Any]:
    if not isinstance(module, Analog):
        return {
            "where": "digital",
            "why": _why_digital(module),
            "rows": None,
            "columns": None,
            "tiles": 0,
            "utilisation": None,
            "padding": None,
        }
    blocks, rows, columns = module.matrix()
    p, code = module.profile, module.profile.encoding
    wide = columns + code.extra_columns
    tiles = blocks * len(module.cuts()) * -(-wide // (p.columns or wide))
    size = (p.rows or -(-rows // len(module.cuts()))) * (p.columns or wide)
    used, cells = blocks * rows * columns, tiles * size
    why = f"weights on {p.name}" + ("" if module.bias is None else ", bias digital")
    return {
        "where": "analog",
        "why": why,
        "rows": rows,
        "columns": columns,
        "tiles": tiles,
        "utilisation": min(1.0, used / cells),
        "padding": max(0, cells - used),
    }


def _why_digital(module: nn.Module) -> str:
    kind = type(module)
    if isinstance(module, LearnedEffect):
        return "simulated noise: the chip makes its own"
    if "_galvanic_later" in module.__dict__:
        return "it goes on the chip after its first call, when its shape is known"
    if _digital_form(module) is not None:
        return "no profile was chosen for it"
    if isinstance(module, tuple(ANALOG_FORM)):
        return f"{kind.__name__} changes what its base class does, and is not taken for it"
    if isinstance(module, Composite):
        return "biases are digital"
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm) or "Norm" in kind.__name__:
        return "normalisation: scale and shift are digital"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "a look-up, not a product"
    if any(module.children()):
        return "parameters outside of any layer"
    return "no analog form of this layer"
