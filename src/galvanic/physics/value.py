"""What every description of physics has in common: a frozen, checked, comparable dataclass."""

import dataclasses
import reprlib
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

import pydantic
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

Scalar = float | Tensor
"""A physical parameter: a number, or a tensor where it is to be fitted or learned."""
NonNegative = Annotated[float, Ge(0)] | Tensor
Positive = Annotated[float, Gt(0)] | Tensor
Fraction = Annotated[float, Ge(0), Le(1)] | Tensor

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 60

_STRICT = pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """A frozen dataclass whose fields are checked against their annotations when it is made.

    Two values are equal when their classes and (detached) fields are; fields declared with ``compare=False`` do not count.

    Raises:
        ValueError: for a field out of range, of the wrong type, infinite or NaN, in one line.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__eq__ = Value.__eq__  # type: ignore[method-assign]  # else @dataclass writes one that stumbles over tensors
        cls.__hash__ = Value.__hash__  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        if not torch.compiler.is_compiling():
            _check(self)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _key(self) == _key(other)

    def __hash__(self) -> int:
        return hash((type(self), _key(self)))


def _key(value: Value) -> tuple[Any, ...]:
    return tuple(_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.compare)


def _plain(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.item() if x.ndim == 0 else (tuple(x.shape), tuple(x.detach().flatten().tolist()))
    return tuple(_plain(e) for e in x) if isinstance(x, tuple) else x


def tensors_in(x: Any) -> list[Tensor]:
    """The tensors among a value's parameters, however deep."""
    if isinstance(x, Tensor):
        return [x]
    parts = [getattr(x, f.name) for f in dataclasses.fields(x)] if isinstance(x, Value) else x if isinstance(x, tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def as_tensor(x: Scalar) -> Tensor:
    """A parameter as a tensor: a number becomes a 0-d double, which keeps its digits, and the dtype of whatever it meets."""
    return x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)


def brief(x: Any) -> str:
    """A value as one short line, however long or deep it is."""
    return " ".join(_BRIEF.repr(x).split())


@cache
def _schema(cls: type) -> type[pydantic.BaseModel]:
    hints = get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {f.name: (_tensor_first(hints[f.name]), ...) for f in dataclasses.fields(cls)}
    return pydantic.create_model(cls.__name__, __config__=_STRICT, **fields)


def _tensor_first(hint: Any) -> Any:
    """Otherwise a tensor would be tried as a number: a warning where it wants a gradient, and a wait for its device."""
    return Annotated[Tensor | hint, pydantic.Field(union_mode="left_to_right")] if Tensor in get_args(hint) else hint


def _check(value: Value) -> None:
    given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    try:
        _schema(type(value))(**given)  # type: ignore[arg-type]
    except pydantic.ValidationError as error:
        faults = error.errors()
        fault = next((f for f in faults if f["type"] not in ("is_instance_of", "none_required", "dataclass_type")), faults[0])
        name = fault["loc"][0]
        raise ValueError(f"{type(value).__name__}.{name} = {brief(given[str(name)])}: {fault['msg'].lower()}") from None
