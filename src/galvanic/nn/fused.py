"""The common converter, quantisation after Gaussian noise, in one pass over a signal; its composable twin is the effects one by one.

The passes run in place over blocks that stay in the cache, noise is drawn block by block, and what is kept for the gradient is a byte an
element. On an accelerator, under `vmap`, `jacrev`, forward-mode gradients and `torch.compile`, and for whatever a converter here does not
describe, a layer applies its effects one by one instead. The numbers are the same but for rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from galvanic.physics import Gaussian, Nonideality, Quantize

_BLOCK = 1 << 15  # elements: a few such blocks stay in a core's second-level cache


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
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def enter(x: Tensor, r: Tensor, by: Converter) -> Tensor:
    """The inputs in units of the full scale `r`, one number, after a converter without noise."""
    if torch.is_grad_enabled() and (x.requires_grad or r.requires_grad):
        return _Enter.apply(x, r, by)
    return _quantise(x, by.top / float(r), by)


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


def _blocks(rows: int, width: int) -> list[slice]:
    """Rows in blocks; each has a multiple of 16 elements where it can, so that block by block the generator gives what it gives at once."""
    least = 16 // gcd(16, max(1, width))
    step = max(1, _BLOCK // max(1, width) // least) * least
    return [slice(a, min(a + step, rows)) for a in range(0, rows, step)]


def _flat(x: Tensor) -> Tensor:
    return x.view(-1) if x.is_contiguous() else x.unsqueeze(0)  # the latter is one block


def _quantise(x: Tensor, k: float, by: Converter) -> Tensor:
    u = torch.empty_like(x)
    flat, out = _flat(x), _flat(u)
    for b in _blocks(len(flat), flat.shape[1:].numel()):
        torch.mul(flat[b], k, out=out[b]).clamp_(by.low, by.high).round_().mul_(1 / by.top)
    return u


def _inside(g: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """`g` where low <= x <= high, else 0, in one pass that is vectorised, which those over booleans are not."""
    room = 1 + torch.finfo(x.dtype).eps  # the kernel leaves out the ends
    return torch.ops.aten.hardtanh_backward(g, x, low * room, high * room)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor, by: Converter) -> Tensor:
        ctx.save_for_backward(x, r)
        ctx.by = by
        return _quantise(x, by.top / float(r), by)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, r = ctx.saved_tensors
        gx = _inside(g, x, float(r) * ctx.by.low / ctx.by.top, float(r) * ctx.by.high / ctx.by.top)
        gx = gx / r if torch.is_grad_enabled() else gx.div_(r)  # in place unless a gradient of this gradient is wanted
        return gx, -(gx * x).sum().view(r.shape) / r if ctx.needs_input_grad[1] else None, None


class _AlongRange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, r: Tensor, weight: Tensor, by: Converter, contract: Callable[..., Tensor]) -> Tensor:
        ctx.save_for_backward(x, r, weight)
        ctx.by, ctx.contract = by, contract
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, r, weight = ctx.saved_tensors
        slope = ctx.contract(_inside(x, x, float(r) * ctx.by.low / ctx.by.top, float(r) * ctx.by.high / ctx.by.top), weight)
        return g, None, -(g * slope).sum().view(r.shape) / r.square(), None, None, None


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
        n, code = len(scale), float(r_y) / by.top  # size of a code in cells
        tiles = [y.detach().view(-1, n, prod(y.shape[y.ndim - trailing :])) for y in ys]
        draws = None if noise is None else [z.reshape(tiles[0].shape) for z in noise]
        gained = scale if gain is None else scale * gain
        k = ((1 / code) / scale).view(n, 1) if unscaled else 1 / code
        factor = (gained * (code if r_x is None else code * float(r_x))).view(n, 1)
        shift = None if bias is None else bias.view(n, 1)
        kept = any(ctx.needs_input_grad)
        ones = torch.ones_like(tiles[0][: _rows(tiles[0])]) if kept else tiles[0]
        masks = [torch.empty_like(y, dtype=torch.int8) for y in tiles] if kept else []
        codes = torch.empty_like(tiles[0], dtype=_integer(by, len(ys))) if ctx.needs_input_grad[0] else None
        for b in _blocks(len(tiles[0]), tiles[0].shape[1:].numel()):
            total: Tensor | None = None
            for t, y in enumerate(tiles):
                v = y[b].mul_(k)
                if std:
                    v.add_(torch.randn_like(v) if draws is None else draws[t][b], alpha=std * by.top)
                if kept:
                    masks[t][b] = _inside(ones[: len(v)], v, by.low, by.high)
                v.clamp_(by.low, by.high).round_()
                total = v if total is None else total.add_(v)
            assert total is not None
            if codes is not None:
                codes[b] = total
            total.mul_(factor)
            if shift is not None:
                total.add_(shift)
        slope = None if unscaled and gain is None else gained if not unscaled else gain
        ctx.save_for_backward(r_x, slope, gained if codes is not None else None, codes, *masks)
        ctx.code, ctx.shape, ctx.columns = code, ys[0].shape, n
        return ys[0].detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        r_x, slope, gained, codes, *masks = ctx.saved_tensors
        flat = g.reshape(masks[0].shape)
        g_bias = flat.sum((0, 2)) if ctx.needs_input_grad[1] else None
        g_r = None
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted
            factor = flat if r_x is None else flat * r_x
            factor = factor if slope is None else factor * slope.expand(ctx.columns).view(-1, 1)
            gys = [factor * mask for mask in masks]
            if codes is not None:
                g_r = (flat * codes * (gained * ctx.code).view(-1, 1)).sum().view(r_x.shape)
        else:
            times: Any = 1.0 if r_x is None else float(r_x)
            times = times if slope is None else (slope * times).expand(ctx.columns).view(-1, 1)
            gys, columns = _backward_in_blocks(flat, times, masks, codes)
            if columns is not None:
                g_r = (torch.dot(columns, gained.to(columns.dtype)) * ctx.code).view(r_x.shape)
        return g_r, g_bias, *[None] * 8, *[gy.view(ctx.shape) for gy in gys]


def _rows(x: Tensor) -> int:
    """Rows of the largest block."""
    blocks = _blocks(len(x), x.shape[1:].numel())
    return blocks[0].stop if blocks else 0


def _backward_in_blocks(g: Tensor, times: Any, masks: list[Tensor], codes: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
    """The gradient to every tile, and for every column the sum of gradient times code."""
    gys = [torch.empty_like(g) for _ in masks]
    columns = None if codes is None else torch.zeros(g.shape[1], dtype=g.dtype)
    for b in _blocks(len(g), g.shape[1:].numel()):
        if columns is not None and codes is not None:
            columns += (g[b] * codes[b]).sum((0, 2))
        gy = torch.mul(g[b], times, out=gys[0][b])
        for mask, out in zip(masks[1:], gys[1:], strict=True):
            torch.mul(gy, mask[b], out=out[b])
        gy.mul_(masks[0][b])
    return gys, columns


def _integer(by: Converter, tiles: int) -> torch.dtype:
    most = max(-by.low, by.high) * tiles
    return torch.int8 if most <= 127 else torch.int16 if most < 1 << 15 else torch.int32
