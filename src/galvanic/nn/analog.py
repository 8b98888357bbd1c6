"""An analog layer: the path of a signal through its converters and tiles."""

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

from galvanic.nn.placed import Side
from galvanic.nn.ranged import Ranged, smallest
from galvanic.nn.written import Stored
from galvanic.physics import Context
from galvanic.profile import Profile
from galvanic.seeding import generator


class Analog(Stored, Ranged):
    r"""A layer whose weight is held by analog devices. It is made from a digital layer by `convert`, in place, and keeps its parameters.

    Its product is, tile by tile over the inputs $i$ of tile $t$, with $\mathcal{D}$, $\mathcal{A}$ the input and output effects:

    $$ y = b + s\,\gamma\,r_x \sum_t r_y \mathcal{A}\Big(\tfrac{1}{r_y} \sum_{i \in t} \hat W_{ti} \mathcal{D}(x_i / r_x)\Big) $$

    where $\hat W$ is the weight over its scale $s$ after encoding, all `weight` effects and decoding, $r_x$ and $r_y$ the ranges and
    $\gamma$ the gain of a drift compensation.
    """

    bias: Tensor | None
    _installed: tuple[str, ...]
    """Attributes that the digital layer did not have."""

    def install(self, profile: Profile, name: str) -> None:
        """Make this layer, whose class was just changed, an analog one."""
        self.profile = profile
        self.name = name
        self.observer: dict[str, list[Tensor]] | None = None
        self.cuts()  # refuses a tile that is too small, before anything else happens
        self._install_chip()
        self._install_weight()
        self._install_ranges()

    def digital(self, x: Tensor, weight: Tensor) -> Tensor:
        """What the digital layer does, with another weight."""
        raise NotImplementedError

    def prepare(self, u: Tensor) -> Tensor:
        """The inputs as the lines of the array see them (padded)."""
        return u

    def contract(self, u: Tensor, w: Tensor, cut: slice | None) -> Tensor:
        """Product of the prepared inputs with the weight, without bias, over the inputs of one tile (None: over all)."""
        raise NotImplementedError

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
        y = reduce(torch.add, (self.leave(self.tile(u, w, variance, cut), at, tile, r_y) for tile, cut in enumerate(cuts)))
        factor = y.new_ones(1) if scale is None else self._gained(scale).flatten()  # (n_out,)
        factor = self._broadcast(factor if r_y is None else factor * r_y) * (1 if r_x is None else r_x)
        y = y * factor.to(y.dtype)
        return y if self.bias is None else y + self._broadcast(self.bias).to(y.dtype)

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
        return y + self.contract(u.square(), variance, cut).clamp(min=smallest(y)).sqrt() * z

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

    def _broadcast(self, columns: Tensor) -> Tensor:
        """A value per column against a signal."""
        return columns.view(-1, *[1] * self.trailing)

    def _gained(self, scale: Tensor) -> Tensor:
        return scale if self.gain is None else scale * self.gain.view(-1, *[1] * (scale.ndim - 1))

    def _observe(self, x: Tensor) -> Tensor:
        """Compute digitally, keeping samples of the inputs and of each tile's result in units of one cell and of the input's range."""
        assert self.observer is not None
        self.observer["input"].append(magnitudes(x))
        scale = self.scale()
        u = self.prepare(x)
        for cut in self.cuts():
            self.observer["output"].append(magnitudes(self.contract(u, self.weight / scale, cut)))
        return self.digital(x, self.weight)


def _largest(x: Tensor, dims: Iterable[int]) -> Tensor:
    return x.detach().abs().amax(dim=list(dims), keepdim=True).clamp(min=smallest(x))


def magnitudes(x: Tensor, most: int = 65536) -> Tensor:
    """Magnitudes at random places, always the same, and the largest one. (Every k-th could be the same column each time.)"""
    flat = x.detach().abs().flatten().to(torch.promote_types(x.dtype, torch.float32))  # torch.quantile knows no shorter one
    if flat.numel() <= most:
        return flat
    places = torch.randint(flat.numel(), (most,), generator=generator("sample")).to(flat.device)
    return torch.cat([flat[places], flat.max().reshape(1)])
