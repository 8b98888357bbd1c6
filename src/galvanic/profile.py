"""A kind of hardware, as data: a distribution over chips."""

import dataclasses
import difflib
import inspect
import json
import re
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from torch import Tensor

from galvanic.physics.base import Additive, Nonideality
from galvanic.physics.coding import InputCoding, Whole
from galvanic.physics.encoding import Direct, Encoding
from galvanic.physics.product import Kirchhoff, Product
from galvanic.physics.value import Value, brief
from galvanic.ranges import Dynamic, Learned, Range

UNITS = {
    "s": "seconds",
    "Hz": "hertz",
    "A": "amperes",
    "V": "volts",
    "K": "kelvin",
    "ohm": "ohms",
    "uS": "microsiemens",
    "eV": "electronvolts",
}
"""Units that close a parameter's name; a number without one is in units of full scale."""

_SIDES = ("input", "weight", "output")


@dataclass(frozen=True, kw_only=True)
class Profile(Value):
    r"""A kind of analog hardware. A chip is one numbered draw from it.

    The signal path reads off it: weights are encoded, pass the `weight` effects and are decoded; inputs pass the `input` effects; the
    `input_coding` makes passes of them; the `product` combines them tile by tile; each result passes the `output` effects; the digital sum
    of passes, lanes and tiles, scale and bias come last.

    A weight effect per read is applied as the output noise it amounts to, of variance $\sum_i x_i^2 \sigma_i^2$: exact where clipping a
    conductance at zero is negligible, too large where it is not (by a factor of up to 2.9 in variance, for devices at zero).

    Args:
        name: short name.
        summary: one sentence for a reader.
        input: effects on the inputs of a tile, in units of `input_range`.
        weight: effects on conductances, in units of the largest.
        output: effects on the result of each tile, in units of `output_range`.
        encoding: weight <-> conductances.
        input_coding: how an input reaches the lines: whole, bit by bit, or split by its sign.
        product: how a tile combines inputs and weights.
        rows: most inputs of a tile; None: as many as the layer has.
        columns: most outputs of a tile; None: as many as the layer has.
        input_range: full scale of the inputs.
        output_range: full scale of the outputs, in units of one cell.
        weight_scale: whether every output column has its own digital scale, or the layer has one.
        power_of_two_scales: whether digital scales and ranges from data are rounded up to a power of two, as fixed-point hardware shifts.
    """

    name: str
    summary: str = ""
    input: tuple[Nonideality, ...] = ()
    weight: tuple[Nonideality, ...] = ()
    output: tuple[Nonideality, ...] = ()
    encoding: Encoding = Direct()
    input_coding: InputCoding = Whole()
    product: Product = Kirchhoff()
    rows: Annotated[int, Ge(1)] | None = None
    columns: Annotated[int, Ge(1)] | None = None
    input_range: Range = Dynamic()
    output_range: Range = Dynamic()
    weight_scale: Literal["column", "layer"] = "column"
    power_of_two_scales: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for effect in self.weight:
            if effect.per == "read" and not isinstance(effect, Additive):
                raise ValueError(
                    f"weight effect {type(effect).__name__} has per='read', which only additive Gaussian noise can have; use per='snapshot'"
                )
            if effect.per == "read" and not self.product.lumps:
                raise ValueError(
                    f"weight effect {type(effect).__name__} has per='read', which a {type(self.product).__name__} cannot turn into noise "
                    "of its outputs; use per='snapshot'"
                )
        for side in ("input", "output"):
            if self.power_of_two_scales and self.converts(side) and isinstance(getattr(self, f"{side}_range"), Dynamic | Learned):
                raise ValueError(f"power_of_two_scales: the {side}_range is fixed or calibrated; one that moves is no power of two")

    def converts(self, side: str) -> bool:
        """Whether the signals of this side have a full scale: 'input' or 'output'."""
        return bool(self.output) if side == "output" else bool(self.input) or type(self.input_coding) is not Whole or self.product.curved


@cache
def _shipped() -> dict[str, str]:
    folder = resources.files("galvanic") / "profiles"
    texts = {f.name.removesuffix(".toml"): f.read_text(encoding="utf-8") for f in folder.iterdir() if f.name.endswith(".toml")}
    return dict(sorted(texts.items()))


def profile_names() -> list[str]:
    """The names of the profiles that come with the library."""
    return list(_shipped())


def load_profile(name: str | Path) -> Profile:
    """The shipped profile of this name, or the one in this TOML file.

    Raises:
        ValueError: unknown name; a wrong key, unit, type or range, NaN or a duplicate in the file, with file, table and key.
        FileNotFoundError: no such file.
    """
    text = str(name)
    if not text.endswith(".toml"):
        if text not in _shipped():
            raise ValueError(f"unknown profile {text!r}{_nearest(text, _shipped())}; a profile of your own is a file that ends in .toml")
        return parse_profile(_shipped()[text], where=f"{text}.toml")
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"no profile file {text}")
    try:
        return parse_profile(path.read_text(encoding="utf-8"), where=text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{text}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def parse_profile(toml: str, *, where: str = "profile") -> Profile:
    """The profile that a TOML text describes; `where` names it in errors."""
    try:
        table = tomllib.loads(toml)
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply") from None
    except ValueError as error:  # of the syntax, or a number of thousands of digits
        raise ValueError(f"{where}: {error}") from None
    return profile_from_dict(table, where=where)


def profile_from_dict(table: Mapping[str, Any], *, where: str = "profile") -> Profile:
    """The profile that nested dictionaries describe: the inverse of `profile_to_dict`."""
    _refuse_unknown(Profile, table, where)
    try:
        return _make(Profile, dict(table) | _parts(table, where), where)
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply") from None


def _parts(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a profile is made of, each part built from its table."""
    values: dict[str, Any] = {}
    for side in _SIDES:
        effects = table.get(side, [])
        if not isinstance(effects, list):
            raise ValueError(f"{where}: {side} is a list of tables, [[{side}]]")
        values[side] = tuple(_build(e, Nonideality, f"{where}: [[{side}]] {i}") for i, e in enumerate(effects, start=1))
    parts = {"encoding": Encoding, "input_coding": InputCoding, "product": Product, "input_range": Range, "output_range": Range}
    for key, base in parts.items():
        if key in table:
            values[key] = _build(table[key], base, f"{where}: {key}")
    return values


def profile_to_dict(profile: Profile) -> dict[str, Any]:
    """Nested dictionaries of plain values, for JSON and TOML."""
    table = _to_table(profile)
    table.pop("kind")
    return table


def to_toml(profile: Profile) -> str:
    """The profile as TOML, which `parse_profile` reads back to an equal one."""
    table = profile_to_dict(profile)
    effects = {side: table.pop(side, []) for side in _SIDES}
    lines = [f"{key} = {_toml(value)}" for key, value in table.items()]
    for side, tables in effects.items():
        for effect in tables:
            lines += ["", f"[[{side}]]", *(f"{key} = {_toml(value)}" for key, value in effect.items())]
    return "\n".join(lines) + "\n"


def _classes(base: type) -> dict[str, type]:
    """Every concrete class below `base` by name, those of users included."""
    found: dict[str, type] = {}
    cls: type
    for cls in base.__subclasses__():
        found |= _classes(cls) | ({} if inspect.isabstract(cls) or not dataclasses.is_dataclass(cls) else {cls.__name__: cls})
    return found


def _build(table: Any, base: type, where: str) -> Any:
    """The object that a table with a `kind` describes."""
    if not isinstance(table, dict) or not isinstance(table.get("kind"), str):
        raise ValueError(f"{where}: a table with a kind, one of {_listed(sorted(_classes(base)))}; got {brief(table)}")
    kinds = dict(sorted(_classes(base).items()))
    kind = table["kind"]
    if kind not in kinds:
        raise ValueError(f"{where}: unknown kind {kind!r}{_nearest(kind, kinds)}")
    where = f"{where} ({kind})"
    values = {k: v for k, v in table.items() if k != "kind"}
    _refuse_unknown(kinds[kind], values, where)
    return _make(kinds[kind], {k: _value(v, f"{where}.{k}") for k, v in values.items()}, where)


def _value(x: Any, where: str) -> Any:
    """A field's value: tables with a kind are curves, codes ..., whatever the field's type asks for; lists are tuples."""
    if isinstance(x, dict):
        return _build(x, Value, where)
    return tuple(_value(e, where) for e in x) if isinstance(x, list) else x


def _make(cls: type, values: Mapping[str, Any], where: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    absent = [
        n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and n not in values
    ]
    if absent:
        raise ValueError(f"{where}: {', '.join(absent)} is missing")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _refuse_unknown(cls: type, keys: Iterable[str], where: str) -> None:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in keys:
        if key not in fields:
            raise ValueError(f"{where}: {_unknown(key, fields)}")


def _unknown(key: str, known: Mapping[str, Any]) -> str:
    """What is wrong with a key that is not known: its unit, or its name."""
    stem = re.sub(r"_[A-Za-z]+$", "", key)
    for name in known:
        unit = name.rpartition("_")[2]
        if unit in UNITS and name.rpartition("_")[0] in (stem, key):
            return f"unit of {key!r} not accepted; give {name} in {UNITS[unit]}"
    return f"unknown key {key!r}{_nearest(key, known)}"


def _nearest(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {_listed(known)}"


def _listed(names: Iterable[str]) -> str:
    """Names for a message of one line, however many effects someone has written."""
    return textwrap.shorten(", ".join(names), 240, placeholder=" ...")


def _to_table(value: Value) -> dict[str, Any]:
    """Every number, whether it is a default today or not: a file means the same tomorrow. What is absent or empty is left out."""
    given = {f.name: _to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    empty = {f.name for f in dataclasses.fields(value) if f.default in (None, "", ()) and given[f.name] in (None, "", [])}
    return {"kind": type(value).__name__} | {name: x for name, x in given.items() if name not in empty}


def _to_plain(x: Any) -> Any:
    if isinstance(x, Value):
        return _to_table(x)
    if isinstance(x, tuple):
        return [_to_plain(e) for e in x]
    return x.tolist() if isinstance(x, Tensor) else x


def _toml(x: Any) -> str:
    if isinstance(x, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in x.items()) + " }"
    if isinstance(x, list):
        return "[" + ", ".join(_toml(e) for e in x) + "]"
    return json.dumps(x, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's numbers, strings and booleans are TOML's, but for DEL
