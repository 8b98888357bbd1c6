"""galvanic: neural networks that survive analog hardware. The public names, by hand; torch is imported when one of them is first used."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "galvanic.nn": (
        "BatchNorm",
        "ColumnDrift",
        "GlobalDrift",
        "age",
        "at",
        "calibrate_ranges",
        "compensate",
        "convert",
        "describe",
        "ensemble",
        "evaluate",
        "inspect",
        "load",
        "program",
        "reads",
        "save",
        "to_digital",
    ),
    "galvanic.physics": ("Conditions",),
    "galvanic.profile": ("Profile", "load_profile", "parse_profile", "profile_names", "to_toml"),
    "galvanic.seeding": ("seed_rank",),
    "galvanic.train": ("NonFinite", "cross_entropy", "steps"),
}
_ORIGIN = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_ORIGIN)]


def __getattr__(name: str) -> Any:
    if name not in _ORIGIN:
        raise AttributeError(f"module 'galvanic' has no attribute {name!r}")
    return getattr(import_module(_ORIGIN[name]), name)


def __dir__() -> list[str]:
    return __all__
