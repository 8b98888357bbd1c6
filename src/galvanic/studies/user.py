"""The user's own network, from a file of theirs."""

import copy
import difflib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def load_builder(spec: str) -> Callable[[], nn.Module]:
    """What makes the network that FILE.py:NAME names: a class or function without arguments, or a module, which is copied.

    The file is executed, as `python FILE.py` would.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such name, or not a network; an error inside the file, with its line.
    """
    file, _, name = spec.rpartition(":")
    if not file or not file.endswith(".py"):
        raise ValueError(f"a network of your own is given as FILE.py:NAME, not {spec!r}")
    if not Path(file).is_file():
        raise FileNotFoundError(f"no file {file}; a network of your own is given as FILE.py:NAME")
    found = getattr(_execute(Path(file)), name, None)
    if isinstance(found, nn.Module):
        return lambda: copy.deepcopy(found)
    if not callable(found):
        known = [n for n, x in vars(_execute(Path(file))).items() if callable(x) or isinstance(x, nn.Module)]
        close = difflib.get_close_matches(name, known, n=1)
        raise ValueError(f"{file} has no network {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    return _checked(found, spec)


def _execute(path: Path) -> object:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} fails when it is read: {type(error).__name__}: {error}") from error
    return module


def _checked(make: Callable[[], object], spec: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        try:
            model = make()
        except TypeError as error:
            raise ValueError(f"{spec} is called without arguments: {error}") from error
        if not isinstance(model, nn.Module):
            raise ValueError(f"{spec} makes a {type(model).__name__}, not a torch.nn.Module")
        return model

    return build


@torch.no_grad()
def check_fit(model: nn.Module, x: Tensor, classes: int, name: str) -> None:
    """Refuse a network that does not take these inputs or give these scores, before any work.

    Raises:
        ValueError: in one line.
    """
    model = copy.deepcopy(model).eval()
    try:
        y = model(x)
    except Exception as error:
        raise ValueError(f"{name} does not take inputs of shape {tuple(x.shape)}: {' '.join(str(error).split())}") from error
    if not isinstance(y, Tensor) or y.shape != (len(x), classes):
        came = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{name} gives {came} for {len(x)} inputs; scores of shape ({len(x)}, {classes}) are needed")
    if not y.isfinite().all():
        raise ValueError(f"{name} gives values that are not finite before any training")
