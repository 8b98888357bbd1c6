"""A layer on a chip: which one, under which conditions, and everything random about it."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from galvanic.physics import Conditions, Nonideality
from galvanic.physics.value import brief
from galvanic.profile import Profile
from galvanic.seeding import generator

Reads = Literal["fresh", "frozen", "off"]
Side = Literal["input", "weight", "output"]


@dataclass(frozen=True)
class Chip:
    """Which chip a layer sits on: its number (None: anonymous), how often it was written, which snapshot of slow noise it is in."""

    number: int | None
    write: int = 0
    snapshot: int = 0

    def __post_init__(self) -> None:
        for name in ("number", "write", "snapshot"):
            value = getattr(self, name)
            if value is None and name == "number":
                continue
            if isinstance(value, bool) or not hasattr(value, "__index__") or operator.index(value) < 0:
                what = "chip" if name == "number" else name
                raise ValueError(f"{what} = {brief(value)}: a whole number from 0 on" + (", or None" if name == "number" else ""))
            object.__setattr__(self, name, operator.index(value))  # NumPy's integers become Python's


class Placed(nn.Module):
    """A layer that sits on a chip. What is drawn less often than at every read is kept here; it is not state: a chip is its number."""

    weight: Tensor
    profile: Profile
    name: str
    trailing: ClassVar[int] = 0
    """Dimensions that follow the feature dimension of a signal."""

    def layout(self) -> tuple[int, ...]:
        r"""(blocks, columns, channels, \*kernel): so many independent matrices; a column takes a row per channel and kernel element."""
        raise NotImplementedError

    def matrix(self) -> tuple[int, int, int]:
        """(blocks, rows, columns): so many independent matrices, each of rows x columns cells."""
        blocks, columns, *rows = self.layout()
        return blocks, prod(rows), columns

    def cuts(self) -> list[slice]:
        """How the channels are divided over tiles: as few and as even parts as possible, a kernel in one piece."""
        _, _, channels, *kernel = self.layout()
        rows = self.profile.rows or channels * prod(kernel)
        if rows < prod(kernel):
            raise ValueError(
                f"{self.name or 'the layer'}: a kernel column takes {prod(kernel)} rows (kernel {tuple(kernel)}), tiles of profile "
                f"{self.profile.name!r} have {rows}; use tiles of {prod(kernel)} rows or more, or leave this layer digital"
            )
        return even(channels, rows // prod(kernel))

    def _install_chip(self) -> None:
        self.gain: Tensor | None = None
        self.noise_level: float | None = 1.0  # None where it wants a gradient, which a number cannot have
        self.reads: Reads = "fresh"
        self.levels: Tensor | None = None  # a factor for each example of a batch, on the noise of its reads
        self._draws: dict[tuple[Side, int], Tensor] = {}
        self._frozen: dict[tuple[str, int, torch.Size], Tensor] = {}
        self._stamp = 0  # counts placements

    @torch.inference_mode(False)  # what is drawn here may be trained through later
    def place(self, chip: Chip, conditions: Conditions, renew: tuple[str, ...] = ("chip", "write", "snapshot")) -> None:
        """Put the layer on a chip under conditions, drawing anew what belongs to the clocks in `renew`."""
        if not isinstance(conditions, Conditions):
            raise ValueError(f"conditions are a Conditions(age_s=..., ...), not {brief(conditions)}")
        if conditions is not getattr(self, "conditions", None):
            level = conditions.noise_level
            self.conditions = conditions
            self.noise_level = None if isinstance(level, Tensor) and level.requires_grad else float(level)
            given = {f.name: getattr(conditions, f.name) for f in fields(conditions)}
            self.at = {name: torch.as_tensor(x, dtype=torch.float64, device="cpu").clone() for name, x in given.items()}
        self.chip = chip
        for side, index, effect, key in self._static_effects():
            if effect.per in renew:
                self._draws[side, index] = self._draw_static(side, effect, key)
        if "write" in renew:
            self.gain = None
        self._frozen = {}
        self._stamp += 1

    def _static_effects(self) -> Iterator[tuple[Side, int, Nonideality, str]]:
        """(side, index, effect, name) of everything drawn less often than every read; the name survives other effects around it."""
        sides: tuple[Side, ...] = ("input", "weight", "output")
        for side in sides:
            seen: dict[str, int] = {}
            for index, effect in enumerate(getattr(self.profile, side)):
                kind = type(effect).__name__
                seen[kind] = seen.get(kind, 0) + 1
                if effect.per not in (None, "read"):
                    yield side, index, effect, f"{side}/{kind}/{seen[kind]}"

    def _draw_static(self, side: Side, effect: Nonideality, key: str) -> Tensor:
        shape = self._static_shape(side)
        device, dtype = self.weight.device, self.weight.dtype
        if self.chip.number is None:
            draw = partial(effect.draw, generator=None, device=device, dtype=dtype)
            return self._draw_lines(side, draw, shape) if effect.lines else draw(shape)
        draw = partial(effect.draw, generator=generator(*self._clock(effect), key), dtype=torch.float32)
        return (self._draw_lines(side, draw, shape) if effect.lines else draw(shape)).to(device, dtype)

    def _draw_lines(self, side: Side, draw: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...]) -> Tensor:
        """Randomness among neighbours, which are those of one block and tile: drawn tile by tile, lines last."""
        if side != "weight":
            lead = shape[:1] if side == "output" else ()
            return torch.cat([draw((*lead, size)) for size in self.line_sizes(side, shape[len(lead)])], -1)
        devices, blocks, columns, _, *kernel = shape
        rows = [(cut.stop - cut.start) * prod(kernel) for cut in self.cuts()]
        wide = [cut.stop - cut.start for cut in even(columns, self.profile.columns or columns)]
        return torch.cat([torch.cat([draw((devices, c, r)) for r in rows], -1) for _ in range(blocks) for c in wide], -2)

    def line_sizes(self, side: Side, lines: int) -> list[int]:
        """How the lines of a signal are divided over blocks and tiles."""
        blocks = self.layout()[0]
        width = lines // blocks
        cuts = self.cuts() if side == "input" else even(width, self.profile.columns or width)
        return [cut.stop - cut.start for cut in cuts] * blocks

    def _static_shape(self, side: Side) -> tuple[int, ...]:
        blocks, columns, channels, *kernel = self.layout()
        code = self.profile.encoding
        columns += code.extra_columns
        if side == "weight":
            return (code.devices, blocks, columns, channels, *kernel)
        if side == "output":
            return (len(self.cuts()) * code.width, blocks * columns, *[1] * self.trailing)
        return (blocks * channels, *[1] * self.trailing)

    def _clock(self, effect: Nonideality) -> tuple[str | int | float | None, ...]:
        """The names that say when this effect is drawn anew."""
        snapshot = (self.chip.write, self.chip.snapshot, float(self.conditions.age_s))
        since = {"chip": (), "write": (self.chip.write,), "snapshot": snapshot}[str(effect.per)]
        return ("galvanic", self.chip.number, self.name, effect.per, *since)

    def _randomness(self, side: Side, index: int, effect: Nonideality, x: Tensor, tile: int = 0) -> Tensor | None:
        if effect.per is None:
            return None
        if effect.per == "read":
            return self._read_draw(f"{side}/{tile}", index, x, partial(self._draw_by_lines, side, effect) if effect.lines else effect.draw)
        z = self._draws[side, index]
        trailing = 0 if effect.lines else self.trailing
        return z.select(z.ndim - 2 - trailing, tile) if side == "output" else z  # from the right: an effect may stack several draws

    def _draw_by_lines(self, side: Side, effect: Nonideality, shape: tuple[int, ...], **kind: Any) -> Tensor:
        return torch.cat([effect.draw((*shape[:-1], size), **kind) for size in self.line_sizes(side, shape[-1])], -1)

    def _read_draw(self, place: str, index: int, x: Tensor, draw: Callable[..., Tensor]) -> Tensor | None:
        """New in every product, or kept (frozen), or none (off)."""
        if self.reads == "off":
            return None
        key = (place, index, x.shape)
        if self.reads == "frozen" and key in self._frozen:
            return self._frozen[key]
        z = draw(tuple(x.shape), device=x.device, dtype=x.dtype)
        if self.reads == "frozen":
            self._frozen[key] = z
        return z

    def _of_examples(self, x: Tensor) -> Tensor | None:
        """The factors on the noise of each example, against a signal; None where all are 1."""
        if self.levels is None:
            return None
        if len(self.levels) != len(x):
            raise ValueError(
                f"{self.name or 'the layer'}: noise levels of {len(self.levels)} examples meet a signal of shape {tuple(x.shape)}; a level "
                "for each takes a batch along the first dimension"
            )
        return self.levels.to(x).view(-1, *[1] * (x.ndim - 1))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._follow(fn)
        return self

    def _follow(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Take the draws where the weight went."""
        for side, index, effect, key in self._static_effects():
            z = self._draws[side, index]
            gone = z.is_meta and not self.weight.is_meta
            self._draws[side, index] = fn(z) if self.chip.number is None and not gone else self._draw_static(side, effect, key)
        self.gain = None if self.gain is None else fn(self.gain)
        self._frozen = {}
        self._stamp += 1

    def extra_repr(self) -> str:
        where = "anonymous chip" if self.chip.number is None else f"chip={self.chip.number}"
        when = f"write={self.chip.write}, age_s={float(self.conditions.age_s):g}"
        return f"{super().extra_repr()}, profile={self.profile.name!r}, {where}, {when}"


def even(size: int, most: int) -> list[slice]:
    """`size` things in as few consecutive parts of at most `most` as possible, of nearly equal size."""
    parts = -(-size // max(1, most)) or 1
    edges = [round(k * size / parts) for k in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]
