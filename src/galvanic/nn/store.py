"""An analog model as one file: weights, hardware, chip and conditions; no draws, a chip is its number."""

import glob
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from galvanic import __version__
from galvanic.nn.analog import Analog
from galvanic.nn.convert import analog_layers, convert
from galvanic.nn.placed import Chip
from galvanic.nn.projection import Projection
from galvanic.physics import Conditions
from galvanic.physics.value import tensors_in
from galvanic.profile import profile_from_dict, profile_to_dict
from galvanic.storage import read_tree, write_tree

_FORMAT = 1


def save(path: str | Path, model: nn.Module) -> None:
    """Write an analog model to one self-checking safetensors file, atomically.

    Raises:
        ValueError: the model is not analog, or sits on an anonymous chip, which no number could bring back.
    """
    layers = analog_layers(model)
    anonymous = [name for name, layer in layers.items() if layer.chip.number is None]
    if anonymous:
        raise ValueError(
            f"layer {anonymous[0]} sits on an anonymous chip, which cannot be saved; program(model, chip=...) gives it a number"
        )
    learned = [name for name, layer in layers.items() if any(t.ndim for t in tensors_in(layer.profile))]
    if learned:
        raise ValueError(f"layer {learned[0]} has a profile with a tensor of several numbers, which has no form in a file")
    write_tree(
        Path(path),
        {
            "format": _FORMAT,
            "versions": {"galvanic": __version__, "torch": str(torch.__version__)},
            "layers": {name: _placed(name, layer) for name, layer in layers.items()},
            "state": dict(model.state_dict()),
        },
    )


def _placed(name: str, layer: Analog) -> dict[str, object]:
    module = name.rpartition(".")[0] if isinstance(layer, Projection) else name
    conditions = {k: float(v) for k, v in asdict(layer.conditions).items()}
    return {
        "profile": profile_to_dict(layer.profile),
        "module": module,
        "chip": asdict(layer.chip),
        "conditions": conditions,
        "gain": layer.gain,
    }


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """The analog model that `save` wrote, on the same chip with the same bits.

    Args:
        path: the file.
        model: a digital (or analog) model of the same architecture; it is untouched. Code is never read from the file.

    Raises:
        ValueError: the file is damaged or does not fit the model, or the model is of another dtype.
    """
    tree = read_tree(Path(path))
    if not isinstance(tree, dict) or tree.get("format") != _FORMAT:
        raise ValueError(f"{path}: not a saved model of format {_FORMAT}")
    try:
        return _rebuilt(tree, model)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit this model: {' '.join(str(error).split())}") from error


def _rebuilt(tree: dict[str, Any], model: nn.Module) -> nn.Module:
    profiles = {glob.escape(placed["module"]): profile_from_dict(placed["profile"], where=name) for name, placed in tree["layers"].items()}
    analog = convert(model, profiles, chip=0)  # any numbered one: an anonymous one would be drawn from the global stream
    for name, own in analog.state_dict().items():
        saved = tree["state"].get(name)
        if saved is not None and saved.dtype != own.dtype:
            raise ValueError(f"{name} was saved as {saved.dtype}, and is {own.dtype} here; model.to({saved.dtype}) first")
    analog.load_state_dict(tree["state"])
    for name, layer in analog_layers(analog).items():
        placed = tree["layers"][name]
        layer.place(Chip(**placed["chip"]), Conditions(**placed["conditions"]))
        layer.gain = None if placed["gain"] is None else placed["gain"].to(layer.weight)
    return analog
