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
from functools import cache
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


def enter(x: Tensor, r: Tensor, by: Converter) -> Tensor:
    """The inputs in units of the full scale `r`, one number, after a converter without noise."""
    if torch.is_grad_enabled() and (x.requires_grad or r.requires_grad):
        return _Enter.apply(x, r, by)
    return _quantise(x, by.top / size_of(r), by)


def size_of(r: Tensor) -> float:
    """A full scale as a number that can be divided by."""
    return max(float(r.detach()), torch.finfo(r.dtype).tiny)


def along_range(y: Tensor, x: Tensor, r: Tensor, weight: Tensor, by: Converter, contract: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    r"""A product ``y = contract(enter(x), weight)`` of inputs without a gradient, which gives the full scale `r` its own.

    Instead of the gradient to every input, the backward pass takes $\sum_j g_j\,(W\,\partial u / \partial r)_j$: one forward product.
    """
    return _AlongRange.apply(y, x, r, weight, by, contract)


def leave(
    ys: list[Tensor],
    scale: Tensor,
    unscaled: bool,
    gain: Tensor | None,
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
        r_x: full scale of the inputs, one number; None for 1.
        bias: of each column.
        r_y: full scale of the converters, in units of one cell.
        std: of the noise before them, in units of it.
        noise: standard normal, where it is not to be drawn here.
        by: the converter.
        trailing: dimensions after that of the columns.
    """
    return _Leave.apply(r_x, bias, scale, unscaled, gain, r_y, std, noise, by, trailing, *ys)


def _blocks(x: Tensor) -> list[Tensor]:
    """A signal in blocks of rows; each has a multiple of 16 elements where it can, so that noise drawn by blocks is that drawn at once."""
    width = x.shape[1:].numel()
    least = 16 // gcd(16, max(1, width))
    step = max(1, _BLOCK // max(1, width) // least) * least
    return list(x.split(step)) if len(x) > step else [x]


def _quantise(x: Tensor, k: float, by: Converter) -> Tensor:
    u = torch.empty_like(x)
    if u.stride() != x.stride():  # a view with gaps
        x, u = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    dense = x.is_contiguous()
    for v, out in zip(_blocks(x.view(-1)), _blocks(u.view(-1)), strict=True) if dense else [(x, u)]:
        torch.mul(v, k, out=out).clamp_(by.low, by.high).round_().mul_(1 / by.top)
    return u


def _inside(g: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """`g` where low <= x <= high, else 0, in one pass that is vectorised, which those over booleans are not."""
    room = 4 * torch.finfo(x.dtype).eps * (high - low)  # the kernel leaves out the ends, which rounding may meet or miss
    return torch.ops.aten.hardtanh_backward(g, x, low - room, high + room)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() if torch.is_grad_enabled() else torch.dot(a.reshape(-1), b.reshape(-1))  # no product is kept


@cache
def _ones(n: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(n, dtype=dtype)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor, by: Converter) -> Tensor:
        ctx.save_for_backward(x, r)
        ctx.by, ctx.size = by, size_of(r)
        return _quantise(x, by.top / ctx.size, by)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, r = ctx.saved_tensors
        gx = _inside(g, x, ctx.size * ctx.by.low / ctx.by.top, ctx.size * ctx.by.high / ctx.by.top)
        again = torch.is_grad_enabled()  # a gradient of this gradient is wanted
        gx = gx / r if again else gx.mul_(1 / ctx.size)
        g_r = None
        if ctx.needs_input_grad[1]:
            g_r = -_dot(gx, x).view(r.shape) / r if again else _dot(gx, x).view(r.shape).mul_(-1 / ctx.size)
            g_r = g_r * (ctx.size > torch.finfo(r.dtype).tiny)  # too small to divide by: nothing is learned from it
        return gx, g_r, None


class _AlongRange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, r: Tensor, weight: Tensor, by: Converter, contract: Callable[..., Tensor]) -> Tensor:
        ctx.save_for_backward(x, r, weight)
        ctx.by, ctx.contract = by, contract
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x, r, weight = ctx.saved_tensors
        size = size_of(r)
        slope = ctx.contract(_inside(x, x, size * ctx.by.low / ctx.by.top, size * ctx.by.high / ctx.by.top), weight)
        g_r = _dot(g.to(slope.dtype), slope).view(r.shape)
        learns = size > torch.finfo(r.dtype).tiny  # else it is too small to divide by
        return g, None, g_r * (-1 / size**2) if learns else torch.zeros_like(r), None, None, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        r_x: Tensor | None,
        bias: Tensor | None,
        scale: Tensor,
        unscaled: bool,
        gain: Tensor | None,
        r_y: Tensor,
        std: float,
        noise: list[Tensor] | None,
        by: Converter,
        trailing: int,
        *ys: Tensor,
    ) -> Tensor:
        n, space = len(scale), prod(ys[0].shape[ys[0].ndim - trailing :])
        code, r = size_of(r_y) / by.top, 1.0 if r_x is None else size_of(r_x)  # size of a code, in cells
        tiles = [_blocks(y.detach().view(-1, n, space)) for y in ys]
        draws = None if noise is None else [_blocks(z.reshape(-1, n, space)) for z in noise]
        gained = scale if gain is None else scale * gain
        k = ((1 / code) / scale).view(n, 1) if unscaled else 1 / code
        factor = (gained * (code * r)).view(n, 1)
        shift = None if bias is None else bias.view(n, 1)
        masks, codes = [], None
        if any(ctx.needs_input_grad):
            masks = [torch.empty(y.shape, dtype=torch.int8) for y in ys]
        if ctx.needs_input_grad[0]:
            codes = torch.empty(ys[0].shape, dtype=_integer(by, len(ys)))
        kept = [_blocks(mask.view(-1, n, space)) for mask in masks]
        sums = None if codes is None else _blocks(codes.view(-1, n, space))
        for b in range(len(tiles[0])):
            total: Tensor | None = None
            for t, tile in enumerate(tiles):
                v = tile[b].mul_(k)
                if std:
                    v.add_(torch.randn_like(v) if draws is None else draws[t][b], alpha=std * by.top)
                if kept:
                    kept[t][b].copy_(_inside(_ones(v.numel(), v.dtype).view(v.shape), v, by.low, by.high))
                v.clamp_(by.low, by.high).round_()
                total = v if total is None else total.add_(v)
            assert total is not None
            if sums is not None:
                sums[b].copy_(total)
            total.mul_(factor)
            if shift is not None:
                total.add_(shift)
        slope = gained if not unscaled else gain
        ctx.save_for_backward(r_x, slope, gained if codes is not None else None, codes, *masks)
        ctx.code, ctx.r, ctx.shape = code, r, (-1, n, space)
        return ys[0].detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        r_x, slope, gained, codes, *masks = ctx.saved_tensors
        flat, n = g.reshape(ctx.shape), ctx.shape[1]
        g_bias = flat.sum((0, 2)) if ctx.needs_input_grad[1] else None
        if codes is None and torch.is_grad_enabled():  # a gradient of this gradient is wanted
            whole = flat if r_x is None else flat * r_x
            whole = whole if slope is None else whole * slope.expand(n).view(-1, 1)
            return None, g_bias, *[None] * 8, *[(whole * mask.view(ctx.shape)).view(g.shape) for mask in masks]
        _refuse_second_derivative()
        times = ctx.r if slope is None else (slope * ctx.r).expand(n).view(-1, 1)
        gys = _backward_in_blocks(flat, times, [mask.view(ctx.shape) for mask in masks], g.shape)
        g_r = None if codes is None else _by_codes(flat, codes.view(ctx.shape), gained).mul_(ctx.code).view(r_x.shape)
        return g_r, g_bias, *[None] * 8, *gys


def _backward_in_blocks(g: Tensor, times: Any, masks: list[Tensor], shape: torch.Size) -> list[Tensor]:
    """The gradient to the result of every tile."""
    gys = [torch.empty(shape, dtype=g.dtype) for _ in masks]
    blocks = [_blocks(gy.view(g.shape)) for gy in gys]
    kept = [_blocks(mask) for mask in masks]
    for b, part in enumerate(_blocks(g)):
        gy = torch.mul(part, times, out=blocks[0][b])
        for t in range(1, len(masks)):
            torch.mul(gy, kept[t][b], out=blocks[t][b])
        gy.mul_(kept[0][b])
    return gys


def _by_codes(g: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """The sum over everything of gradient times code times the scale of the column."""
    columns = sum((part * code).sum((0, 2)) for part, code in zip(_blocks(g), _blocks(codes), strict=True))
    return torch.dot(torch.as_tensor(columns), scale)


def _integer(by: Converter, tiles: int) -> torch.dtype:
    most = max(-by.low, by.high) * tiles
    return torch.int8 if most <= 127 else torch.int16 if most < 1 << 15 else torch.int32
