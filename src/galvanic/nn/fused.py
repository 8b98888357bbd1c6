"""The common converter, quantisation after Gaussian noise, in one pass over a signal; its composable twin is the effects one by one.

The passes run in place over blocks that stay in the cache, noise is drawn block by block, and what is kept for the gradient is a byte an
element. On an accelerator, under `vmap`, `jacrev`, forward-mode gradients and `torch.compile`, and for whatever a converter here does not
describe, a layer applies its effects one by one instead. The numbers are the same but for rounding; where there are several tiles and
blocks, noise is drawn in another order.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from galvanic.physics import Gaussian, Nonideality, Quantize

_fuse = ContextVar("fuse", default=True)
_BLOCK = 1 << 16  # elements: a few such blocks stay in a core's second-level cache


@dataclass(frozen=True)
class Converter:
    """Codes `low` ... `high` of size 1 / `top` of full scale, after noise of `std`."""

    low: int
    high: int
    top: float
    std: float = 0.0


def converter(effects: Sequence[Nonideality]) -> Converter | None:
    """What these effects amount to where they are a quantiser, perhaps after one Gaussian noise per read; None for any others."""
    *noise, last = effects or (None,)
    if type(last) is not Quantize or last.per is not None or isinstance(last.full_scale, Tensor) or (levels := last.levels()) is None:
        return None
    if not noise:
        return Converter(*levels, 1 / float(last.size()))
    first = noise[0]
    if len(noise) > 1 or not isinstance(first, Gaussian) or type(first) is not Gaussian or first.relative or first.per != "read":
        return None
    return None if isinstance(first.std, Tensor) else Converter(*levels, 1 / float(last.size()), float(first.std))


def possible(x: Tensor) -> bool:
    """Whether this signal may take the fused pass: a plain eager tensor of full precision, on the CPU."""
    return (
        x.dtype in (torch.float32, torch.float64)
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and _fuse.get()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


@contextmanager
def unfused() -> Iterator[None]:
    """Within it, layers apply their effects one by one: slower, and open to every derivative."""
    token = _fuse.set(False)
    try:
        yield
    finally:
        _fuse.reset(token)


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "second derivatives of a layer with a learned input range: run the forward pass within galvanic.nn.unfused(), which applies "
            "the effects one by one"
        )


def enter(x: Tensor, r: Tensor, by: Converter, unit: float = 1.0) -> Tensor:
    """The inputs after a converter without noise, of full scale `r`, one number, which becomes `unit`.

    A unit is a constant to the gradient. Where it is the full scale itself, the gradient to the inputs is spared a pass.
    """
    if torch.is_grad_enabled() and (x.requires_grad or r.requires_grad):
        return _Enter.apply(x, r, by, unit)
    return _quantise(x, size_of(r), by, unit)


def size_of(r: Tensor) -> float:
    """A full scale as a number that can be divided by."""
    return max(r.item(), torch.finfo(r.dtype).tiny)


def along_range(
    y: Tensor, x: Tensor, r: Tensor, unit: float, weight: Tensor, by: Converter, onto: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    r"""A product `y` of inputs without a gradient, ``enter(x, r, by, unit)``, with `weight`, which gives the full scale `r` its own.

    Instead of the gradient to every input, the backward pass takes $\sum_j g_j\,(W\,\partial u / \partial r)_j$: one product,
    ``onto(g, du, weight)``.
    """
    return _AlongRange.apply(y, x, r, unit, weight, by, onto)


def leave(
    ys: list[Tensor],
    scale: Tensor,
    unscaled: bool,
    gain: Tensor | None,
    unit: float,
    r_x: Tensor | None,
    bias: Tensor | None,
    r_y: Tensor,
    std: float,
    noise: list[Tensor] | None,
    by: Converter,
    trailing: int,
) -> Tensor:
    """The sum over tiles of their converted results, times the digital scale, plus the bias. The results are overwritten.

    Args:
        ys: result of each tile, (..., columns, *space), contiguous and kept by nobody.
        scale: digital scale of each column.
        unscaled: whether the results are in units of the scale rather than of one cell.
        gain: further factor of each column.
        unit: unit of the inputs: the results hold it as a factor.
        r_x: full scale of the inputs, one number; None for 1.
        bias: of each column.
        r_y: full scale of the converters, in units of one cell.
        std: of the noise before them, in units of it.
        noise: standard normal, where it is not to be drawn here.
        by: the converter.
        trailing: dimensions after that of the columns.
    """
    return _Leave.apply(r_x, bias, scale, unscaled, gain, unit, r_y, std, noise, by, trailing, *ys)


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    """A signal in blocks of rows; each has a multiple of 16 elements where it can, so that noise drawn by blocks is that drawn at once."""
    if x.numel() <= _BLOCK:
        return (x,)
    width = x.shape[1:].numel()
    least = 16 // gcd(16, max(1, width))
    return x.split(max(1, _BLOCK // max(1, width) // least) * least)


def _quantise(x: Tensor, r: float, by: Converter, unit: float) -> Tensor:
    if x.numel() <= _BLOCK:
        return torch.mul(x, by.top / r).round_().clamp_(by.low, by.high).mul_(unit / by.top)
    u = torch.empty_like(x)
    if u.stride() != x.stride():  # a view with gaps
        x, u = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    dense = x.is_contiguous()
    for v, out in zip(_blocks(x.view(-1)), _blocks(u.view(-1)), strict=True) if dense else [(x, u)]:
        torch.mul(v, by.top / r, out=out).round_().clamp_(by.low, by.high).mul_(unit / by.top)
    return u


def _unless_clipped(g: Tensor, v: Tensor, by: Converter, code: float = 1.0) -> Tensor:
    """`g` where v, in units of `code`, is nearest to a code of the converter, else 0: one vectorised pass, unlike those over booleans."""
    return torch.ops.aten.hardtanh_backward(g, v, (by.low - 0.5) * code, (by.high + 0.5) * code)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() if torch.is_grad_enabled() else torch.dot(a.reshape(-1), b.reshape(-1))  # no product is kept


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor, by: Converter, unit: float) -> Tensor:
        ctx.save_for_backward(x, r)
        ctx.by, ctx.size, ctx.unit = by, size_of(r), unit
        return _quantise(x, ctx.size, by, unit)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, r = ctx.saved_tensors
        gx = _unless_clipped(g, x, ctx.by, ctx.size / ctx.by.top)
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted
            gx = gx * (ctx.unit / r)
        elif ctx.unit != ctx.size:
            gx = gx.mul_(ctx.unit / ctx.size)
        g_r = None
        if ctx.needs_input_grad[1]:
            learns = ctx.size > torch.finfo(r.dtype).tiny  # else it is too small to divide by
            g_r = -_dot(gx, x).view(r.shape) / r if learns else torch.zeros_like(r)
        return gx, g_r, None, None


class _AlongRange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, r: Tensor, unit: float, weight: Tensor, by: Converter, onto: Callable[..., Tensor]
    ) -> Tensor:
        ctx.save_for_backward(x, r, weight)
        ctx.unit, ctx.by, ctx.onto = unit, by, onto
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x, r, weight = ctx.saved_tensors
        size = size_of(r)
        g_r = ctx.onto(g, _unless_clipped(x, x, ctx.by, size / ctx.by.top), weight).view(r.shape)
        learns = size > torch.finfo(r.dtype).tiny  # else it is too small to divide by
        return g, None, g_r * (-ctx.unit / size / size) if learns else torch.zeros_like(r), None, None, None, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        r_x: Tensor | None,
        bias: Tensor | None,
        scale: Tensor,
        unscaled: bool,
        gain: Tensor | None,
        unit: float,
        r_y: Tensor,
        std: float,
        noise: list[Tensor] | None,
        by: Converter,
        trailing: int,
        *ys: Tensor,
    ) -> Tensor:
        n, space = scale.shape[0], prod(ys[0].shape[ys[0].ndim - trailing :])
        code, r = size_of(r_y) / by.top, 1.0 if r_x is None else size_of(r_x)  # size of a code, in cells
        gained = scale if gain is None else scale * gain
        k = (scale * (code * unit)).reciprocal_().view(n, 1) if unscaled else 1 / (code * unit)
        factor = (gained * (code * r)).view(n, 1)
        shift = None if bias is None else bias.view(n, 1)
        tiles = [_blocks(y.detach().view(-1, n, space)) for y in ys]
        draws = None if noise is None else [_blocks(z.reshape(-1, n, space)) for z in noise]
        codes = torch.empty(ys[0].shape, dtype=_integer(by, len(ys))) if ctx.needs_input_grad[0] else None
        sums = None if codes is None else _blocks(codes.view(-1, n, space))
        clips = [_Clips(y, n, space) for y in ys] if any(ctx.needs_input_grad) else None
        z = torch.empty_like(tiles[0][0]) if std and draws is None else None
        for b, total in enumerate(tiles[0]):
            for t, tile in enumerate(tiles):
                v = tile[b].mul_(k)
                if std:
                    v.add_(z[: v.shape[0]].normal_() if draws is None else draws[t][b], alpha=std * by.top)  # type: ignore[index]
                v.round_()
                if clips is None:
                    v.clamp_(by.low, by.high)
                else:
                    clips[t].see(b, v, by)
                if t:
                    total.add_(v)
            if sums is not None:
                sums[b].copy_(total)
            total.mul_(factor)
            if shift is not None:
                total.add_(shift)
        masks = [] if clips is None else [c.mask for c in clips]
        ctx.save_for_backward(gain if unscaled else gained, gained if codes is not None else None, codes, *masks)
        ctx.code, ctx.times, ctx.shape = code, r / unit, (-1, n, space)
        return ys[0].detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        slope, gained, codes, *masks = ctx.saved_tensors
        flat, n = g.reshape(ctx.shape), ctx.shape[1]
        g_bias = flat.sum((0, 2)) if ctx.needs_input_grad[1] else None
        times = ctx.times if slope is None else (slope * ctx.times).expand(n).view(-1, 1)
        whole = flat if isinstance(times, float) and times == 1 else flat * times
        gys = [(whole if mask is None else whole * mask.view(ctx.shape)).view(g.shape) for mask in masks]
        g_r = None
        if codes is not None:
            _refuse_second_derivative()
            g_r = _by_codes(flat, codes.view(ctx.shape), gained).mul_(ctx.code)
        return g_r, g_bias, *[None] * 9, *gys


class _Clips:
    """Where a result was clipped: a byte an element, and none where nothing was."""

    def __init__(self, y: Tensor, n: int, space: int) -> None:
        self.mask: Tensor | None = None
        self._shape, self._flat = y.shape, (-1, n, space)

    def see(self, block: int, v: Tensor, by: Converter) -> None:
        """Clip a block of rounded codes."""
        if not v.numel() or (v.amax().item() <= by.high and v.amin().item() >= by.low):
            return
        if self.mask is None:
            self.mask = torch.ones(self._shape, dtype=torch.int8)
        _blocks(self.mask.view(self._flat))[block].copy_(_unless_clipped(torch.ones_like(v), v, by))
        v.clamp_(by.low, by.high)


def _by_codes(g: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """The sum over everything of gradient times code times the scale of the column, (1,)."""
    parts = _blocks(g)
    scratch = torch.empty_like(parts[0])
    columns = [scratch[: part.shape[0]].copy_(code).mul_(part).sum((0, 2)) for part, code in zip(parts, _blocks(codes), strict=True)]
    return torch.dot(columns[0] if len(columns) == 1 else torch.stack(columns).sum(0), scale).view(1)


def _integer(by: Converter, tiles: int) -> torch.dtype:
    most = max(-by.low, by.high) * tiles
    return torch.int8 if most <= 127 else torch.int16 if most < 1 << 15 else torch.int32
