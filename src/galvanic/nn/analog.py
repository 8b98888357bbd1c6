"""What every analog layer is made of: a profile, a chip, and the path of a signal through its tiles."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from galvanic.physics import Additive, Conditions, Context, Nonideality
from galvanic.profile import Profile
from galvanic.ranges import Dynamic, Fixed, FromData, Learned, Range
from galvanic.seeding import generator

Reads = Literal["fresh", "frozen", "off"]
Side = Literal["input", "weight", "output"]

_SMALLEST_RANGE = 1e-9  # a silent vector has no largest magnitude to divide by


@dataclass(frozen=True)
class Chip:
    """Which chip a layer sits on: its number (None: anonymous), how often it was written, which snapshot of slow noise it is in."""

    number: int | None
    write: int = 0
    snapshot: int = 0


class Analog(nn.Module):
    """A layer whose weight is held by analog devices. It is made from a digital layer by `convert`, in place, and keeps its parameters.

    Its product is, tile by tile over the inputs $i$ of tile $t$, with $\\mathcal{D}$, $\\mathcal{A}$ the input and output effects:

    $$ y = b + s\\,\\gamma\\,r_x \\sum_t r_y \\mathcal{A}\\Big(\\tfrac{1}{r_y} \\sum_{i \\in t} \\hat W_{ti}\\,\\mathcal{D}(x_i / r_x)\\Big) $$

    where $\\hat W$ is the weight over its scale $s$ after encoding, all `weight` effects and decoding, $r_x$ and $r_y$ the ranges and
    $\\gamma$ the gain of a drift compensation.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    # -- what a kind of layer says of itself ------------------------------------------------------------------------------------------

    def digital(self, x: Tensor, weight: Tensor) -> Tensor:
        """What the digital layer does, with another weight."""
        raise NotImplementedError

    def prepare(self, u: Tensor) -> Tensor:
        """The inputs as the lines of the array see them (padded)."""
        return u

    def contract(self, u: Tensor, w: Tensor, cut: slice | None) -> Tensor:
        """Product of the prepared inputs with the weight, without bias, over the inputs of one tile (None: over all)."""
        raise NotImplementedError

    def matrix(self) -> tuple[int, int, int]:
        """(blocks, rows, columns): so many independent matrices, each of rows x columns cells."""
        raise NotImplementedError

    def cuts(self) -> list[slice]:
        """How the axis 1 of the weight is divided over tiles."""
        raise NotImplementedError

    trailing: ClassVar[int] = 0
    """Dimensions that follow the feature dimension of a signal."""

    # -- construction -----------------------------------------------------------------------------------------------------------------

    def install(self, profile: Profile, name: str) -> None:
        """Make this layer, whose class was just changed, an analog one."""
        self.profile = profile
        self.name = name
        self.gain: Tensor | None = None
        self.observer: dict[str, list[Tensor]] | None = None
        self.reads: Reads = "fresh"
        self._draws: dict[tuple[Side, int], Tensor] = {}
        self._frozen: dict[tuple[str, int, torch.Size], Tensor] = {}
        self._kept: tuple[Any, Tensor] | None = None
        self._stamp = 0
        self.cuts()  # refuses a tile that is too small, before anything else happens
        for side in ("input", "output"):
            self._install_range(side)

    def _install_range(self, side: str) -> None:
        """The attribute `input_range` or `output_range`: absent where the side has no effects or its range is dynamic."""
        range_: Range = getattr(self.profile, f"{side}_range")
        name = f"{side}_range"
        if not getattr(self.profile, side) or isinstance(range_, Dynamic):
            return
        if isinstance(range_, Fixed):
            self.register_buffer(name, self.weight.new_tensor(range_.value).detach(), persistent=False)
        elif isinstance(range_, Learned):
            self.register_parameter(name, nn.Parameter(self.weight.new_tensor(float("nan")).detach()))
        else:
            self.register_buffer(name, self.weight.new_tensor(float("nan")).detach())
        self.set_range(side, None if isinstance(range_, FromData) else range_.value)

    def set_range(self, side: str, value: Tensor | float | None) -> None:
        """Fill a range; None leaves it to be calibrated. (A Python flag, not the tensor, says that it is ready: no sync, no graph break.)"""
        if value is not None:
            with torch.no_grad():
                getattr(self, f"{side}_range").copy_(torch.as_tensor(value))
        setattr(self, f"_{side}_ready", value is not None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A digital checkpoint has no ranges: those of the layer stay."""
        for side in ("input", "output"):
            name = f"{side}_range"
            own = self._parameters.get(name, None if name in self._non_persistent_buffers_set else self._buffers.get(name))
            if own is not None and prefix + name not in state_dict:
                state_dict[prefix + name] = own.detach().clone()
            elif own is not None:
                setattr(self, f"_{side}_ready", bool(state_dict[prefix + name].isfinite()))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Any, recurse: bool = True) -> "Analog":
        super()._apply(fn, recurse)
        self._draws = {key: fn(z) for key, z in self._draws.items()}
        self.gain = None if self.gain is None else fn(self.gain)
        self._frozen, self._kept = {}, None
        return self

    def extra_repr(self) -> str:
        where = "anonymous chip" if self.chip.number is None else f"chip={self.chip.number}"
        return f"{super().extra_repr()}, profile={self.profile.name!r}, {where}, write={self.chip.write}, age_s={float(self.conditions.age_s):g}"

    # -- chip and conditions ----------------------------------------------------------------------------------------------------------

    def place(self, chip: Chip, conditions: Conditions, renew: tuple[str, ...] = ("chip", "write", "snapshot")) -> None:
        """Put the layer on a chip under conditions, drawing anew what belongs to the clocks in `renew`."""
        self.chip, self.conditions = chip, conditions
        self.at = {f.name: torch.as_tensor(getattr(conditions, f.name), dtype=torch.float64) for f in fields(conditions)}
        for side, index, effect, key in self._static_effects():
            if effect.per in renew:
                self._draws[side, index] = self._draw_static(side, effect, key)
        if "write" in renew:
            self.gain = None
        self._frozen, self._kept = {}, None
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
            return effect.draw(shape, None, device=device, dtype=dtype)
        return effect.draw(shape, generator(*self._clock(effect), key), dtype=torch.float32).to(device, dtype)

    def _static_shape(self, side: Side) -> tuple[int, ...]:
        blocks, _, columns = self.matrix()
        if side == "weight":
            return (self.profile.encoding.devices, *self.weight.shape)
        if side == "output":
            return (len(self.cuts()), blocks * columns, *[1] * self.trailing)
        return (blocks * self.weight.shape[1], *[1] * self.trailing)

    def _clock(self, effect: Nonideality) -> tuple[str | int | float | None, ...]:
        """The names that say when this effect is drawn anew."""
        c = self.conditions
        moment = (float(c.age_s), float(c.temperature_K), float(c.time_s), float(c.supply_V))
        start = ("galvanic", self.chip.number, self.name, effect.per)
        return start + {"chip": (), "write": (self.chip.write,), "snapshot": (self.chip.write, self.chip.snapshot, *moment)}[str(effect.per)]

    # -- the signal path --------------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        if self.observer is not None:
            return self._observe(x)
        at = Context(**self.at)
        w, variance, scale = self.written(at)
        if not self.profile.input and not self.profile.output and variance is None:
            return self.digital(x, w if scale is None else w * self._gained(scale))
        u, r_x = self.enter(x, at)
        r_y = self.full_scale("output")
        cuts = self.cuts() if self.profile.output or variance is not None else [None]
        if r_y is not None:
            w, variance = w / r_y, None if variance is None else variance / r_y.square()
        y = sum(self.leave(self.tile(u, w, variance, cut), at, tile, r_y) for tile, cut in enumerate(cuts))
        factor = 1 if scale is None else self._gained(scale).flatten()  # (n_out,)
        factor = self._broadcast(factor if r_y is None else factor * r_y) * (1 if r_x is None else r_x)
        return y * factor if self.bias is None else y * factor + self._broadcast(self.bias)

    def enter(self, x: Tensor, at: Context) -> tuple[Tensor, Tensor | None]:
        """The inputs after their converters, in units of full scale, and that full scale; (x, None) where that side has no effects."""
        if not self.profile.input:
            return self.prepare(x), None
        r = self.full_scale("input")
        if r is None:
            r = _largest(x, range(x.ndim - 1 - self.trailing, x.ndim))
        return self.prepare(self._disturb("input", x / r, at)), r

    def tile(self, u: Tensor, w: Tensor, variance: Tensor | None, cut: slice | None) -> Tensor:
        """A tile's currents. Independent Gaussian noise of every cell at every read is exactly noise of variance sum_i x_i^2 var_i."""
        y = self.contract(u, w, cut)
        z = None if variance is None else self._read_draw(f"cells/{cut}", 0, y, torch.randn)
        if variance is None or z is None:
            return y
        return y + self.contract(u.square(), variance, cut).clamp(min=1e-30).sqrt() * z

    def leave(self, y: Tensor, at: Context, tile: int, r_y: Tensor | None) -> Tensor:
        """A tile's result after its converters; `y` is in units of `r_y`, or of one cell where that is None."""
        if not self.profile.output or r_y is not None:
            return self._disturb("output", y, at, tile)
        r = _largest(y, [y.ndim - 1 - self.trailing])
        return self._disturb("output", y / r, at, tile) * r

    def _disturb(self, side: Side, x: Tensor, at: Context, tile: int = 0) -> Tensor:
        for index, effect in enumerate(getattr(self.profile, side)):
            x = effect.apply(x, self._randomness(side, index, effect, x, tile), at)
        return x

    def _randomness(self, side: Side, index: int, effect: Nonideality, x: Tensor, tile: int = 0) -> Tensor | None:
        if effect.per is None:
            return None
        if effect.per == "read":
            return self._read_draw(f"{side}/{tile}", index, x, effect.draw)
        z = self._draws[side, index]
        return z[tile] if side == "output" else z

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

    def full_scale(self, side: str) -> Tensor | None:
        """The range of a side where it is one number; None where it is found per vector, or not needed.

        Raises:
            RuntimeError: it is to be calibrated and has not been.
        """
        r: Tensor | None = getattr(self, f"{side}_range", None)
        if r is not None and not getattr(self, f"_{side}_ready"):
            raise RuntimeError(
                f"{self.name}: its {side} range is not calibrated yet; run calibrate_ranges(model, batches), load a checkpoint that has it, "
                f"or give the profile {side}_range=Dynamic()"
            )
        return None if r is None else r.clamp(min=_SMALLEST_RANGE)

    def _broadcast(self, columns: Tensor) -> Tensor:
        """A value per column against a signal."""
        return columns.view(-1, *[1] * self.trailing)

    def _gained(self, scale: Tensor) -> Tensor:
        return scale if self.gain is None else scale * self.gain.view(-1, *[1] * (scale.ndim - 1))

    # -- the weight -------------------------------------------------------------------------------------------------------------------

    def written(self, at: Context) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The effective weight over its digital scale, its variance at every read, and the scale, (n_out, 1, ...).

        The variance is None without read noise of cells; the scale is None where nothing asks for one. Kept between reads under `no_grad`
        until the write, the conditions or the weight change. (A write to ``weight.data`` is not seen: a chip holds what was programmed.)
        """
        if not self.profile.weight and not self.profile.output:
            return self.profile.product.effective(self.weight), None, None
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or type(self.weight) is not nn.Parameter or self.weight.is_inference():
            return self._written(at)
        key = (self.weight._version, self.weight.data_ptr(), self._stamp)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self._written(at))
        return self._kept[1]

    def _written(self, at: Context) -> tuple[Tensor, Tensor | None, Tensor]:
        scale = self.scale()
        g = self.conductances(scale, at)
        noisy = [e for e in self.profile.weight if isinstance(e, Additive) and e.per == "read"]
        variance = None
        if noisy:
            squares = sum((at.noise_level * torch.as_tensor(e.sigma(g, at)).to(g)).square() for e in noisy)
            variance = self.profile.encoding.decode_variance(torch.as_tensor(squares).expand_as(g))
        return self.profile.product.effective(self.profile.encoding.decode(g)), variance, scale

    def scale(self) -> Tensor:
        """The digital scale, from the largest magnitude of each output column or of the layer; a column of zeros has scale 1."""
        dims = list(range(self.weight.ndim))[1 if self.profile.weight_scale == "column" else 0 :]
        top = self.weight.detach().abs().amax(dim=dims, keepdim=True)
        return torch.where(top > 0, top, 1.0).expand(self.weight.shape[0], *top.shape[1:])

    def conductances(self, scale: Tensor, at: Context) -> Tensor:
        """The conductances now, (devices, \\*shape of weight), in units of the largest; noise per read is not in them."""
        target = self.profile.encoding.encode(self.weight / scale)
        g, context = target, replace(at, target=target, written=target)
        for index, effect in enumerate(self.profile.weight):
            if effect.per == "read":
                continue
            g = effect.apply(g, self._randomness("weight", index, effect, g), context)
            if self.profile.encoding.nonnegative:
                g = g.clamp(min=0)
            if not effect.after_write:
                context = replace(context, written=g)
        return g

    # -- calibration of ranges --------------------------------------------------------------------------------------------------------

    def _observe(self, x: Tensor) -> Tensor:
        """Compute digitally, keeping samples of the inputs and of each tile's result in units of one cell and of the input's range."""
        assert self.observer is not None
        self.observer["input"].append(_sample(x))
        scale = self.scale()
        u = self.prepare(x)
        for cut in self.cuts():
            self.observer["output"].append(_sample(self.contract(u, self.weight / scale, cut)))
        return self.digital(x, self.weight)


def _largest(x: Tensor, dims: Iterable[int]) -> Tensor:
    return x.detach().abs().amax(dim=list(dims), keepdim=True).clamp(min=_SMALLEST_RANGE)


def _sample(x: Tensor, most: int = 65536) -> Tensor:
    """Magnitudes of an even subset, the largest one included."""
    flat = x.detach().abs().flatten()
    return torch.cat([flat[:: max(1, flat.numel() // most)], flat.max().reshape(1)])
