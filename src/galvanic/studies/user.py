"""The user's own network, from a file of theirs."""

import copy
import difflib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

_MODULE = "galvanic_user_file"


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
    module = _execute(Path(file))
    found = getattr(module, name, None)
    if isinstance(found, nn.Module):
        return lambda: copy.deepcopy(found)
    if not callable(found):
        known = [n for n, x in vars(module).items() if callable(x) or isinstance(x, nn.Module)]
        close = difflib.get_close_matches(name, known, n=1)
        raise ValueError(f"{file} has no network {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    return _checked(found, spec, Path(file))


def _execute(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(_MODULE, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[_MODULE] = module  # where dataclasses look for it
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # a network made here has the same weights in the process that resumes
            specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} fails when it is read: {_told(error, path)}") from error
    return module


def _told(error: BaseException, path: Path) -> str:
    """An error in the user's file, in one line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == os.path.abspath(path)]
    return text if isinstance(error, SyntaxError) or not lines else f"{text} ({path}, line {lines[-1]})"  # a SyntaxError has it already


def _checked(make: Callable[[], object], spec: str, path: Path) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        try:
            model = make()
        except Exception as error:
            raise ValueError(f"{spec} fails when it is called without arguments: {_told(error, path)}") from error
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
    for layer, module in model.named_modules():
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters(recurse=False)):
            raise ValueError(f"{name}: {type(module).__name__} {layer!r} has no shape before the first call; call it where it is made")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{name} has nothing to train: no parameter requires a gradient")
    try:
        model = copy.deepcopy(model).eval()
    except Exception as error:
        raise ValueError(f"{name} cannot be copied: {' '.join(str(error).split())}") from error
    try:
        y = model(x)
    except Exception as error:
        raise ValueError(f"{name} does not take inputs of shape {tuple(x.shape)}: {' '.join(str(error).split())}") from error
    if not isinstance(y, Tensor) or y.shape != (len(x), classes):
        came = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{name} gives {came} for {len(x)} inputs; scores of shape ({len(x)}, {classes}) are needed")
    if not y.is_floating_point():
        raise ValueError(f"{name} gives {y.dtype}; scores are floating-point numbers")
    if not y.isfinite().all():
        raise ValueError(f"{name} gives values that are not finite before any training")
