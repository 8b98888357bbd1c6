"""A layer whose weight was written to devices: what they hold now."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from galvanic.nn import fused
from galvanic.nn.placed import Placed, even
from galvanic.physics import Additive, Circuit, Context, DifferentialPair, Direct, Gaussian, Kirchhoff, Nonideality
from galvanic.physics.value import as_tensor, tensors_in

_PIECE = 1 << 20  # devices; what is computed on the way to a large matrix then stays small


@dataclass(frozen=True)
class Written:
    """What the devices of a layer amount to, in the layout (blocks, columns, channels, ...) and in units of one cell.

    Attributes:
        lanes: the matrices of every lane, one a term of the product; for a circuit, the conductances themselves.
        variances: of every lane's matrix at every read, of its shape, or (1, 1, ...) where all cells are alike; None without noise.
        scale: digital scale of every column, (blocks, columns, 1, ...); None where nothing asks for one, and the only lane is the weight.
        unscaled: whether the only matrix is in units of the weight instead: of `scale` cells.
    """

    lanes: tuple[tuple[Tensor, ...], ...]
    variances: tuple[Tensor, ...] | None = None
    scale: Tensor | None = None
    unscaled: bool = False


class Stored(Placed):
    """A layer whose weight is held by devices."""

    def _install_weight(self) -> None:
        self._held: Written | None = None
        self._kept: tuple[int, Tensor, Written] | None = None
        self._fixed = not tensors_in(self.profile)  # a parameter that is a tensor may change at any time
        p = self.profile
        exact = isinstance(p.encoding, Direct | DifferentialPair) and isinstance(p.product, Kirchhoff)
        self._bare = exact and not p.weight and not p.output  # the devices hold the weight itself
        alike = all(type(e) is Gaussian and not e.relative and e.per != "read" for e in p.weight)
        self._added = alike and isinstance(p.encoding, Direct) and isinstance(p.product, Kirchhoff)  # noise in units of the scale

    def cells(self, weight: Tensor) -> Tensor:
        """A weight in the layout (blocks, columns, channels, ...)."""
        raise NotImplementedError

    def native(self, cells: Tensor) -> Tensor:
        """The inverse of `cells`, for any number of columns and channels."""
        raise NotImplementedError

    def written(self, at: Context) -> Written:
        """What the devices hold. Kept between reads under `no_grad` until the write, the conditions or the weight change.

        The weight is compared by value, since fused optimizers and writes to ``weight.data`` leave its version as it was.
        """
        weight = self.weight
        if self._bare:
            return Written(((self.cells(weight),),))
        if self._held is not None:
            return self._held
        busy = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if busy or type(weight) not in (Tensor, nn.Parameter) or not self._fixed:
            return self._written(at)
        if self._kept is None or self._kept[0] != self._stamp or not torch.equal(self._kept[1], weight):
            self._kept = (self._stamp, weight.detach().clone(), self._written(at))
        return self._kept[2]

    def hold(self, held: bool) -> None:
        """Compute what the devices hold once for the reads to come, or stop using it."""
        self._held = self._written(Context(**self.at)) if held and not self._bare else None

    def _written(self, at: Context) -> Written:
        device = self.weight.device.type
        if not torch.compiler.is_compiling() and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):  # physics is no product to be had cheaply, and may be kept
                return self._written(at)
        scale = self.scale()
        if self._added:
            return Written(((self._with_noise(scale, at),),), None, scale, unscaled=True)
        pieces = [self._lanes(scale, at, piece) for piece in self._pieces()]
        if len(pieces) == 1:
            return Written(*pieces[0], scale)
        lanes = tuple(
            tuple(torch.cat(parts, 1) for parts in zip(*terms, strict=True)) for terms in zip(*[p[0] for p in pieces], strict=True)
        )
        return Written(lanes, _joined([p[1] for p in pieces]), scale)

    def _pieces(self) -> list[slice]:
        """The columns, in pieces of about `_PIECE` devices where nothing couples them and no gradient keeps every step anyway."""
        blocks, rows, columns = self.matrix()
        p = self.profile
        coupled = torch.is_grad_enabled() or not p.product.local or p.encoding.extra_columns or any(e.lines for e in p.weight)
        each = max(1, _PIECE // (blocks * rows * p.encoding.devices))
        return [slice(0, columns)] if coupled or torch.compiler.is_compiling() else [slice(a, a + each) for a in range(0, columns, each)]

    def _lanes(self, scale: Tensor, at: Context, columns: slice) -> tuple[tuple[tuple[Tensor, ...], ...], tuple[Tensor, ...] | None]:
        g, squares = self._devices(scale, at, columns)
        code, product = self.profile.encoding, self.profile.product
        if isinstance(product, Circuit):
            return ((g,),), None
        terms = product.matrices(g) if product.local else (self._by_tiles(lambda tile: product.matrices(tile)[0], g),)
        by_term = [code.lanes(matrix) for matrix in terms]
        return tuple(zip(*by_term, strict=True)), None if squares is None else code.lane_variances(squares)

    def _with_noise(self, scale: Tensor, at: Context) -> Tensor:
        """The weight plus noise of the scale: `conductances` times the scale, without dividing by it first."""
        w = self.cells(self.weight)
        compiling = torch.compiler.is_compiling()  # which would make the number a constant
        level = at.noise_level if compiling or self.noise_level is None else self.noise_level
        for index, effect in enumerate(self.profile.weight):
            z = self._randomness("weight", index, effect, w)
            if z is not None:
                w = torch.addcmul(w, z[0], (scale * (level * effect.std)).to(w.dtype))  # type: ignore[attr-defined]
        return w

    def scale(self) -> Tensor:
        """The digital scale, (blocks, columns, 1, ...): the largest magnitude of each output column, or of the layer.

        A column of zeros has that of the layer, and a layer of zeros 1.
        """
        w = self.cells(self.weight.detach())
        dims = tuple(range(2, w.ndim) if self.profile.weight_scale == "column" else range(w.ndim))
        top = torch.maximum(w.amax(dims, keepdim=True), -w.amin(dims, keepdim=True))  # no copy of the magnitudes
        if self.profile.power_of_two_scales:
            top = torch.exp2(top.log2().ceil())
        if not fused.possible(w) or top.amin().item() <= 0:
            largest = top.max()  # a column of zeros is written with the scale of the layer, or its noise would be anyone's
            top = torch.where(top > 0, top, torch.where(largest > 0, largest, 1.0))
        return top if top.shape[1] == w.shape[1] else top.expand(w.shape[0], w.shape[1], *top.shape[2:])

    def conductances(self, scale: Tensor, at: Context, columns: slice | None = None) -> Tensor:
        """The conductances now, (devices, blocks, columns, channels, ...), in units of the largest; noise per read is not in them.

        Args:
            scale: the digital scale.
            at: the conditions.
            columns: some of the columns; None for all.
        """
        return self._devices(scale, at, columns)[0]

    def _devices(self, scale: Tensor, at: Context, columns: slice | None) -> tuple[Tensor, Tensor | None]:
        """The conductances, and the variance of each at every read: (devices, 1, ...) where all are alike, None without noise."""
        w = self.cells(self.weight)
        part = w.shape[1] if columns is None else len(range(w.shape[1])[columns])
        whole = part == w.shape[1]
        if not whole and columns is not None:
            w, scale = w[:, columns], scale[:, columns]
        target = self.profile.encoding.encode(w / scale)
        g, context = target, replace(at, target=target, written=target)
        squares: Tensor | None = None
        for index, effect in enumerate(self.profile.weight):
            if effect.per == "read":
                square = self._square(effect, g, context)
                squares = square if squares is None else squares + square
                continue
            z = self._randomness("weight", index, effect, g)
            if z is not None and not whole and columns is not None:
                z = z.narrow(z.ndim - w.ndim + 1, columns.start, part)
            g = self._on_lines(effect, g, z, context) if effect.lines else effect.apply(g, z, context)
            if self.profile.encoding.nonnegative:
                g = g.clamp(min=0)
            if not effect.after_write:
                context = replace(context, written=g)
        return g, squares

    def _square(self, effect: Nonideality, g: Tensor, at: Context) -> Tensor:
        assert isinstance(effect, Additive)
        square = (at.noise_level * as_tensor(effect.sigma(g, at))).to(g).square()
        return square.expand(g.shape[0], *[1] * (g.ndim - 1)) if square.ndim == 0 else square.expand(g.shape)

    def _on_lines(self, effect: Nonideality, g: Tensor, z: Tensor | None, context: Context) -> Tensor:
        """An effect among neighbours, which are those of one tile."""
        if z is None:
            return self._by_tiles(lambda tile: effect.apply(tile, None, context), g)
        return self._by_tiles(lambda tile, draw: effect.apply(tile, draw, context), g, z.reshape(*z.shape[:-3], *g.shape))

    def _by_tiles(self, fn: Callable[..., Tensor], g: Tensor, *others: Tensor) -> Tensor:
        """A function of the cells (devices, columns, rows) of one tile, applied to every tile; the others are cut alike."""
        columns = even(g.shape[2], self.profile.columns or g.shape[2])
        blocks = []
        for block in range(g.shape[1]):
            rows = []
            for cut in self.cuts():
                tiles = []
                for column in columns:
                    parts = [_tile(t, g.ndim, block, column, cut) for t in (g, *others)]
                    tiles.append(fn(*(part.flatten(part.ndim - (g.ndim - 3)) for part in parts)).unflatten(-1, parts[0].shape[2:]))
                rows.append(torch.cat(tiles, 1))
            blocks.append(torch.cat(rows, 2))
        return torch.stack(blocks, 1)


def _joined(pieces: list[tuple[Tensor, ...] | None]) -> tuple[Tensor, ...] | None:
    """The variances of all columns; where all cells are alike, those of any."""
    known = [p for p in pieces if p is not None]
    if not known:
        return None
    return tuple(parts[0] if parts[0].numel() == 1 else torch.cat(parts, 1) for parts in zip(*known, strict=True))


def _tile(t: Tensor, ndim: int, block: int, columns: slice, channels: slice) -> Tensor:
    """The cells of one tile, (..., devices, columns, channels, ...), of a tensor (..., devices, blocks, columns, channels, ...)."""
    axis = t.ndim - ndim + 1
    t = t.select(axis, block).narrow(axis, columns.start, columns.stop - columns.start)
    return t.narrow(axis + 1, channels.start, channels.stop - channels.start)
