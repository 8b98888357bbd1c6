"""An analog layer: the path of a signal through its converters and tiles."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from galvanic.nn import fused
from galvanic.nn.placed import Side, even
from galvanic.nn.ranged import Ranged, smallest
from galvanic.nn.written import Stored, Written
from galvanic.physics import Circuit, Context, Kirchhoff, Nonideality, Whole
from galvanic.profile import Profile
from galvanic.seeding import generator

Results = list[list[list[Tensor]]]
"""What the output converters see: by tile, lane and pass."""


class Analog(Stored, Ranged):
    r"""A layer whose weight is held by analog devices. It is made from a digital layer by `convert`, in place, and keeps its parameters.

    Its product is, tile by tile over the inputs $i$ of tile $t$, with $\mathcal{D}$, $\mathcal{A}$ the input and output effects:

    $$ y = b + s\,\gamma\,r_x \sum_t r_y \mathcal{A}\Big(\tfrac{1}{r_y} \sum_{i \in t} \hat W_{ti} \mathcal{D}(x_i / r_x)\Big) $$

    where $\hat W$ is the weight over its scale $s$ after encoding, all `weight` effects and decoding, $r_x$ and $r_y$ the ranges and
    $\gamma$ the gain of a drift compensation. Where the encoding has several lanes, or the input several passes, each has an
    $\mathcal{A}$ of its own, and they are combined digitally.
    """

    bias: Tensor | None
    _installed: tuple[str, ...]
    """Attributes that the digital layer did not have."""

    def install(self, profile: Profile, name: str) -> None:
        """Make this layer, whose class was just changed, an analog one."""
        self.profile = profile
        self.name = name
        self.observer: dict[str, list[Tensor]] | None = None
        self._converters = {side: fused.converter(getattr(profile, side)) for side in ("input", "output")}
        quantiser = self._converters["input"]
        still = quantiser is not None and not quantiser.std and not any(effect.per == "read" for effect in profile.weight)
        self._rides = (
            still and type(profile.input_coding) is Whole and isinstance(profile.product, Kirchhoff) and profile.encoding.width == 1
        )
        self._keeps_unit = self._rides and not profile.encoding.extra_columns  # whose codes, alike in a column, meet half a step exactly
        self.cuts()  # refuses a tile that is too small, before anything else happens
        self._install_chip()
        self._install_weight()
        self._install_ranges()

    def digital(self, x: Tensor, weight: Tensor, *how: Any) -> Tensor:
        """What the digital layer does, with another weight."""
        raise NotImplementedError

    def prepare(self, u: Tensor) -> Tensor:
        """The inputs as the lines of the array see them (padded)."""
        return u

    def parts(self, u: Tensor, cuts: list[slice]) -> tuple[Tensor, ...]:
        """The inputs of every tile."""
        blocks = self.layout()[0]
        if len(cuts) == 1:
            return (u,)
        sizes, axis = [cut.stop - cut.start for cut in cuts], u.ndim - 1 - self.trailing
        if blocks == 1:
            return u.split(sizes, axis)
        return tuple(part.flatten(axis, axis + 1) for part in u.unflatten(axis, (blocks, -1)).split(sizes, axis + 1))

    def contract(self, u: Tensor, weight: Tensor, *how: Any) -> Tensor:
        """Product of prepared inputs with a weight in the layer's own layout, without bias."""
        raise NotImplementedError

    def onto(self, g: Tensor, u: Tensor, weight: Tensor, *how: Any) -> Tensor:
        """The scalar product of `g` with ``contract(u, weight)``."""
        y = self.contract(u, weight, *how)
        return torch.dot(g.to(y.dtype).reshape(-1), y.reshape(-1))

    def patches(self, u: Tensor, *how: Any) -> Tensor:
        """The prepared inputs as vectors, (..., positions..., channels x kernel), for a circuit that is solved vector by vector."""
        raise NotImplementedError

    def how(self, x: Tensor, *given: Any) -> tuple[Any, ...]:
        """What the product needs to know beside the signal and the weight, from the further arguments of the call."""
        return given

    def forward(self, input: Tensor, *given: Any) -> Tensor:
        x, how = input, self.how(input, *given)
        if self.observer is not None:
            return self._observe(x, *how)
        at = Context(**self.at)
        w = self.written(at)
        if self._alone(w):
            return self.digital(x, self.weight if self._bare else self.native(self._whole(w)), *how)
        u, r_x, unit = self.enter(x, at)
        results = self.results(u, w, *how)
        if r_x is not None and self._wants_range_alone(x, r_x):
            results = self._along_range(results, x, r_x, unit, w, *how)
        if self._leaves_at_once(w, results):
            return self._leave_at_once(results, w, r_x, unit)
        results = self.in_cells(results, w, unit)
        r_y, width = self.full_scale("output"), self.profile.encoding.width
        converted = [[[self.leave(y, at, t * width + k, r_y) for y in ys] for k, ys in enumerate(lanes)] for t, lanes in enumerate(results)]
        y = self.collect(converted)
        factor = y.new_ones(1) if w.scale is None else self._gained(w.scale).flatten()  # (n_out,)
        if r_x is not None:
            r_x = r_x.clamp(min=smallest(r_x))
        y = y * (self._broadcast(factor) * (1 if r_x is None else r_x)).to(y.dtype)
        return y if self.bias is None else y + self._broadcast(self.bias).to(y.dtype)

    def _alone(self, w: Written) -> bool:
        """Whether nothing but one matrix stands between input and output."""
        converted = self.profile.converts("input") or len(self.profile.output) > 0 or w.variances is not None  # no graph takes `not (...,)`
        return not converted and len(w.lanes) == len(w.lanes[0]) == 1 and not self.profile.encoding.extra_columns

    def _whole(self, w: Written) -> Tensor:
        """The only matrix in units of the weight."""
        matrix = w.lanes[0][0]
        if w.unscaled:
            return matrix if self.gain is None else matrix * self._gained(torch.ones_like(w.scale))  # type: ignore[arg-type]
        return matrix if w.scale is None else matrix * self._gained(w.scale)

    def in_cells(self, results: Results, w: Written, unit: float = 1.0) -> Results:
        """The results of inputs in this unit, in units of one cell."""
        if unit == 1 and (not w.unscaled or w.scale is None):
            return results
        by: Any = self._broadcast(w.scale.flatten() * unit) if w.unscaled and w.scale is not None else unit
        return [[[y / (by.to(y.dtype) if isinstance(by, Tensor) else by) for y in ys] for ys in lanes] for lanes in results]

    def enter(self, x: Tensor, at: Context) -> tuple[Tensor, Tensor | None, float]:
        """The inputs after their converters, their full scale, and their unit in units of it.

        The unit is the full scale itself, but where a linear product may as well take them in their own; (x, None, 1) without converters.
        """
        if not self.profile.converts("input"):
            return self.prepare(x), None, 1.0
        converter, r = self._converters["input"], self.stored_range("input")
        if r is not None and converter is not None and not converter.std and fused.possible(x):
            unit = fused.size_of(r) if self._keeps_unit else 1.0
            u = fused.enter(x, r.detach() if self._wants_range_alone(x, r) else r, converter, unit)
            return self.prepare(u), r, unit
        r = self._full_scale_of(x)
        return self.prepare(self._disturb("input", x / r, at)), r, 1.0

    def _full_scale_of(self, x: Tensor) -> Any:
        """The full scale of these inputs: one number, or one a vector; None where that side needs none."""
        if not self.profile.converts("input"):
            return None
        r = self.full_scale("input")
        return _largest(x, range(x.ndim - 1 - self.trailing, x.ndim)) if r is None else r

    def _wants_range_alone(self, x: Tensor, r: Tensor) -> bool:
        """Whether the range of the inputs wants a gradient and they do not: then `_along_range` gives it its own."""
        wants = torch.is_grad_enabled() and r.requires_grad and not x.requires_grad
        return wants and self._rides and fused.possible(x)

    def _along_range(self, results: Results, x: Tensor, r: Tensor, unit: float, w: Written, *how: Any) -> Results:
        """The results, with the gradient to the full scale of inputs that have none themselves."""
        converter, cuts = self._converters["input"], self.cuts()
        assert converter is not None
        sizes = [cut.stop - cut.start for cut in cuts]

        def onto(tile: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
            return lambda g, slope, weight: self.onto(g, self.parts(self.prepare(slope), cuts)[tile], weight, *how)

        if len(results) == 1:
            cuts, sizes = [slice(0, sum(sizes))], [sum(sizes)]
        weights = [self.native(m) for m in _cut(w.lanes[0][0], sizes)]
        return [
            [[fused.along_range(lanes[0][0], x, r, unit, weight, converter, onto(t))]]
            for t, (lanes, weight) in enumerate(zip(results, weights, strict=True))
        ]

    def results(self, u: Tensor, w: Written, *how: Any) -> Results:
        """What the converters see of every tile, lane and pass, in units of one cell."""
        cuts = (
            self.cuts()
            if self.profile.output or w.variances is not None or isinstance(self.profile.product, Circuit)
            else [slice(0, self.layout()[2])]
        )
        if isinstance(self.profile.product, Circuit):
            inputs = [self.parts(one, cuts) for one in self.profile.input_coding.passes(u)]
            return [self._circuit(inputs, w.lanes[0][0], t, cut, *how) for t, cut in enumerate(cuts)]
        return self._linear(u, w, cuts, *how)

    def _linear(self, u: Tensor, w: Written, cuts: list[slice], *how: Any) -> Results:
        """The results of tiles that multiply by matrices."""
        passes = [[self.parts(term, cuts) for term in self.profile.product.inputs(one)] for one in self.profile.input_coding.passes(u)]
        sizes = [cut.stop - cut.start for cut in cuts]
        lanes = [[_cut(matrix, sizes) for matrix in terms] for terms in w.lanes]
        noise = [None] * len(lanes) if w.variances is None else [v if v.numel() == 1 else _cut(v, sizes) for v in w.variances]
        return [
            [
                [self._tile([p[t] for p in terms], [m[t] for m in lane], _piece(var, t), (t, k, j), *how) for j, terms in enumerate(passes)]
                for k, (lane, var) in enumerate(zip(lanes, noise, strict=True))
            ]
            for t in range(len(cuts))
        ]

    def _tile(
        self, inputs: list[Tensor], matrices: list[Tensor], variance: Tensor | None, place: tuple[int, int, int], *how: Any
    ) -> Tensor:
        """A tile's currents. Independent Gaussian noise of every cell at every read is exactly noise of variance sum_i x_i^2 var_i."""
        y = reduce(torch.add, (self.contract(u, self.native(m), *how) for u, m in zip(inputs, matrices, strict=True)))
        z = None if variance is None else self._read_draw(f"cells/{place}", 0, y, torch.randn)
        if variance is None or z is None:
            return y
        power = self._power(inputs[0].square(), matrices[0], variance, *how)
        power = power.to(torch.promote_types(power.dtype, torch.float32))  # the smallest number of half precision is no small noise
        levels = self._of_examples(y)
        return y + power.clamp(min=smallest(power)).sqrt().to(y.dtype) * (z if levels is None else z * levels)

    def _power(self, squares: Tensor, matrix: Tensor, variance: Tensor, *how: Any) -> Tensor:
        """sum_i x_i^2 var_i, of a signal that broadcasts against the tile's result; one column for all where cells are alike."""
        alike = variance.numel() == 1
        full = variance.expand(matrix.shape[0], 1, *matrix.shape[2:]) if alike else variance
        y = self.contract(squares, self.native(full), *how)
        if alike and matrix.shape[0] > 1:
            y = y.repeat_interleave(matrix.shape[1], y.ndim - 1 - self.trailing)
        return y

    def _circuit(self, passes: list[tuple[Tensor, ...]], g: Tensor, tile: int, cut: slice, *how: Any) -> list[list[Tensor]]:
        """By lane and pass, the currents of a tile that is solved for every vector."""
        circuit = self.profile.product
        assert isinstance(circuit, Circuit)
        cells = g.narrow(3, cut.start, cut.stop - cut.start).flatten(3)  # (devices, blocks, columns, rows)
        by_pass = []
        for inputs in passes:
            vectors = self.patches(inputs[tile], *how)  # (..., blocks, rows)
            blocks = []
            for block in range(g.shape[1]):
                columns = [cells[:, block, c] for c in even(g.shape[2], self.profile.columns or g.shape[2])]
                blocks.append(torch.cat([circuit.currents(vectors[..., block, :], part) for part in columns], -1))
            currents = torch.cat(blocks, -1)  # (devices, ..., blocks x columns)
            by_pass.append([y.movedim(-1, y.ndim - 1 - self.trailing) for y in self.profile.encoding.lanes(currents)])
        return [list(lane) for lane in zip(*by_pass, strict=True)]

    def leave(self, y: Tensor, at: Context, converter: int, r_y: Tensor | None) -> Tensor:
        """A result after its converters, in units of one cell."""
        if not self.profile.output:
            return y
        r = _largest(y, [y.ndim - 1 - self.trailing]) if r_y is None else r_y
        return self._disturb("output", y / r, at, converter) * r

    def collect(self, results: Results) -> Tensor:
        """The digital sum of converted results over tiles, and their combination over passes and lanes."""
        coding, code = self.profile.input_coding, self.profile.encoding
        lanes = [
            reduce(torch.add, parts) for parts in zip(*[[coding.combine(passes) for passes in lanes] for lanes in results], strict=True)
        ]
        if code.width == 1 and not code.extra_columns:
            return lanes[0]
        axis, blocks = lanes[0].ndim - 1 - self.trailing, self.layout()[0]
        return code.combine([lane.unflatten(axis, (blocks, -1)) for lane in lanes], axis + 1).flatten(axis, axis + 1)

    def _leaves_at_once(self, w: Written, results: Results) -> bool:
        """Whether conversion, sum over tiles, scale and bias can be one pass over the result."""
        r_y, y = self.stored_range("output"), results[0][0][0]
        if not fused.possible(y) or self.noise_level is None:  # in this order: a compiled graph must not depend on the number
            return False
        plain = w.scale is not None and len(results[0]) == len(results[0][0]) == 1 and not self.profile.encoding.extra_columns
        learned = r_y is not None and r_y.requires_grad and torch.is_grad_enabled()
        return plain and self._converters["output"] is not None and r_y is not None and not learned and y.is_contiguous()

    def _leave_at_once(self, results: Results, w: Written, r_x: Tensor | None, unit: float) -> Tensor:
        converter, r_y = self._converters["output"], self.stored_range("output")
        assert converter is not None and w.scale is not None  # noqa: PT018
        assert r_y is not None and self.noise_level is not None  # noqa: PT018
        ys = [lanes[0][0] for lanes in results]
        std = converter.std * self.noise_level
        noise: list[Tensor] | None = None
        if std and (self.reads != "fresh" or self.levels is not None):
            drawn = [self._read_draw(f"output/{t}", 0, y, torch.randn) for t, y in enumerate(ys)]
            levels = self._of_examples(ys[0])
            noise = [z if levels is None else z * levels for z in drawn if z is not None]
            std = std if noise else 0.0
        one = r_x is None or r_x.numel() == 1
        scale, gain = w.scale.flatten().to(ys[0].dtype), None if self.gain is None else self.gain.to(ys[0].dtype)
        y = fused.leave(
            ys, scale, w.unscaled, gain, unit, r_x if one else None, self.bias if one else None, r_y, std, noise, converter, self.trailing
        )
        if r_x is None or one:
            return y
        y = y * r_x
        return y if self.bias is None else y + self._broadcast(self.bias)

    def _disturb(self, side: Side, x: Tensor, at: Context, converter: int = 0) -> Tensor:
        levels = self._of_examples(x)
        reading = at if levels is None else replace(at, noise_level=at.noise_level * levels)
        for index, effect in enumerate(getattr(self.profile, side)):
            there = reading if effect.per == "read" else at
            if effect.lines:
                axis = x.ndim - 1 - self.trailing
                x = x.movedim(axis, -1)
                x = self._on_neighbours(side, effect, x, self._randomness(side, index, effect, x, converter), there).movedim(-1, axis)
            else:
                x = effect.apply(x, self._randomness(side, index, effect, x, converter), there)
        return x

    def _on_neighbours(self, side: Side, effect: Nonideality, x: Tensor, z: Tensor | None, at: Context) -> Tensor:
        """An effect among the lines (last) of a signal: neighbours are those of one block and tile."""
        sizes = self.line_sizes(side, x.shape[-1])
        draws = [None] * len(sizes) if z is None else z.split(sizes, -1)
        return torch.cat([effect.apply(part, draw, at) for part, draw in zip(x.split(sizes, -1), draws, strict=True)], -1)

    def _broadcast(self, columns: Tensor) -> Tensor:
        """A value per column against a signal."""
        return columns.view(-1, *[1] * self.trailing)

    def _gained(self, scale: Tensor) -> Tensor:
        return scale if self.gain is None else scale * (self.gain.view(scale.shape) if self.gain.numel() > 1 else self.gain)

    def _observe(self, x: Tensor, *how: Any) -> Tensor:
        """Compute digitally, keeping samples of the inputs or of what the output converters see, in units of one cell."""
        assert self.observer is not None
        if "input" in self.observer:
            self.observer["input"].append(magnitudes(x))
        elif self.profile.output:
            for y in self.currents(x, *how):
                self.observer["output"].append(magnitudes(y))
        return self.digital(x, self.weight, *how)

    def currents(self, x: Tensor, *how: Any) -> list[Tensor]:
        """What ideal devices would give the output converters, in units of one cell; wires are left out."""
        scale, product = self.scale(), self.profile.product
        g = self.profile.encoding.encode(self.cells(self.weight) / scale)
        terms = product.matrices(g) if product.local else (g,)
        ideal = Written(tuple(zip(*[self.profile.encoding.lanes(matrix) for matrix in terms], strict=True)))
        u = self.prepare(x if (r := self._full_scale_of(x)) is None else x / r)
        return [y for lanes in self._linear(u, ideal, self.cuts(), *how) for passes in lanes for y in passes]


def _cut(matrix: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """The channels of every tile; the gradient of a needless split would be a copy."""
    return (matrix,) if len(sizes) == 1 else matrix.split(sizes, 2)


def _piece(variance: Tensor | tuple[Tensor, ...] | None, tile: int) -> Tensor | None:
    return variance[tile] if isinstance(variance, tuple) else variance


def _largest(x: Tensor, dims: Iterable[int]) -> Tensor:
    return x.detach().abs().amax(dim=list(dims), keepdim=True).clamp(min=smallest(x))


def magnitudes(x: Tensor, most: int = 65536) -> Tensor:
    """Magnitudes at random places, always the same, and the largest one. (Every k-th could be the same column each time.)"""
    flat = x.detach().abs().flatten().to(torch.promote_types(x.dtype, torch.float32))  # torch.quantile knows no shorter one
    if flat.numel() <= most:
        return flat
    places = torch.randint(flat.numel(), (most,), generator=generator("sample")).to(flat.device)
    return torch.cat([flat[places], flat.max().reshape(1)])
