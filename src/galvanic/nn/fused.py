"""The common converter, quantisation after Gaussian noise, in one pass over a signal; its composable twin is the effects one by one.

The passes run in place over blocks that stay in the cache, noise is drawn block by block, and what is kept for the gradient is a byte an
element. Under `vmap`, `jacrev`, forward-mode gradients and `torch.compile`, and for whatever a converter here does not describe, a layer
applies its effects one by one instead. The numbers are the same but for rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from galvanic.physics import Gaussian, Nonideality, Quantize

_BLOCK = 1 << 16  # elements; a few such blocks stay in a core's second-level cache


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
        return Converter(*levels, levels[1] / last.full_scale)
    first = noise[0]
    simple = len(noise) == 1 and type(first) is Gaussian and first.per == "read" and not first.relative
    if not simple or isinstance(first.std, Tensor):
        return None
    return Converter(*levels, levels[1] / last.full_scale, float(first.std))


def possible(x: Tensor) -> bool:
    """Whether this signal may take the fused pass: plain eager tensors of full precision."""
    return (
        x.dtype in (torch.float32, torch.float64)
        and type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def enter(x: Tensor, r: Tensor, by: Converter) -> Tensor:
    """The inputs in units of the full scale `r`, one number, after a converter without noise."""
    if not torch.is_grad_enabled() or not (x.requires_grad or r.requires_grad):
        return _quantise(x, (by.top / r).to(x.dtype), by, None)
    return _Enter.apply(x, r, by)


def leave(
    ys: list[Tensor],
    columns: Tensor,
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
        columns: digital scale of each column.
        r_x: full scale of the inputs, one number; None for 1.
        bias: of each column.
        r_y: full scale of the converters.
        std: of the noise before them, in units of it.
        noise: standard normal, where it is not to be drawn here.
        by: the converter.
        trailing: dimensions after that of the columns.
    """
    return _Leave.apply(columns, r_x, bias, r_y, std, noise, by, trailing, *ys)


def _blocks(rows: int, width: int) -> list[slice]:
    """Rows in blocks; each has a multiple of 16 elements where it can, so that block by block the generator gives what it gives at once."""
    least = 16 // gcd(16, max(1, width))
    step = max(1, _BLOCK // max(1, width) // least) * least
    return [slice(a, min(a + step, rows)) for a in range(0, rows, step)]


def _flat(x: Tensor) -> Tensor:
    return x.view(-1) if x.is_contiguous() else x.reshape(1, *x.shape)  # one block


def _quantise(x: Tensor, k: Tensor, by: Converter, inside: Tensor | None) -> Tensor:
    u = torch.empty_like(x)
    flat, out, mask = _flat(x), _flat(u), None if inside is None else _flat(inside)
    for b in _blocks(flat.shape[0], flat[0].numel() if flat.shape[0] else 1):
        v = torch.mul(flat[b], k, out=out[b])
        if mask is None:
            v.clamp_(by.low, by.high).round_().mul_(1 / by.top)
        else:
            clipped = v.clamp(by.low, by.high)
            torch.eq(clipped, v, out=mask[b])
            torch.mul(clipped.round_(), 1 / by.top, out=v)
    return u


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor, by: Converter) -> Tensor:
        inside = torch.empty_like(x, dtype=torch.bool) if any(ctx.needs_input_grad) else None
        ctx.save_for_backward(inside, r, x if ctx.needs_input_grad[1] else None)
        return _quantise(x, (by.top / r).to(x.dtype), by, inside)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inside, r, x = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted
            gx = g * inside / r
            return gx, None if x is None else -(gx * x).sum() / r, None
        gx = (g * inside).div_(r)
        return gx, None if x is None else -torch.dot(gx.reshape(-1), x.reshape(-1)) / r, None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        columns: Tensor,
        r_x: Tensor | None,
        bias: Tensor | None,
        r_y: Tensor,
        std: float,
        noise: list[Tensor] | None,
        by: Converter,
        trailing: int,
        *ys: Tensor,
    ) -> Tensor:
        n = len(columns)
        tiles = [y.detach().view(-1, n, prod(y.shape[y.ndim - trailing :])) for y in ys]
        draws = None if noise is None else [z.reshape(tiles[0].shape) for z in noise]
        k = (by.top / r_y).to(ys[0].dtype)
        unit = (columns * (r_y / by.top)).to(ys[0].dtype).view(n, 1)  # of one code, for inputs of full scale 1
        factor, shift = unit if r_x is None else unit * r_x, None if bias is None else bias.view(n, 1)
        learned = r_x is not None and ctx.needs_input_grad[1]
        kept = any(ctx.needs_input_grad)
        masks = [torch.empty(y.shape, dtype=torch.bool, device=y.device) for y in tiles] if kept else []
        codes = torch.empty(tiles[0].shape, dtype=_integer(by, len(ys)), device=ys[0].device) if learned else None
        for b in _blocks(len(tiles[0]), tiles[0].shape[1:].numel()):
            total: Tensor | None = None
            for t, y in enumerate(tiles):
                v = y[b].mul_(k)
                if std:
                    v.add_(torch.randn_like(v) if draws is None else draws[t][b], alpha=std * by.top)
                code = v.clamp(by.low, by.high)
                if kept:
                    torch.eq(code, v, out=masks[t][b])
                code.round_()
                total = code if total is None else total.add_(code)
            assert total is not None
            if codes is not None:
                codes[b] = total
            torch.mul(total, factor, out=tiles[0][b])
            if shift is not None:
                tiles[0][b].add_(shift)
        ctx.save_for_backward(columns.to(ys[0].dtype).view(n, 1), r_x, r_y, codes, *masks)
        ctx.top, ctx.shape = by.top, ys[0].shape
        return ys[0].detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        columns, r_x, r_y, codes, *masks = ctx.saved_tensors
        flat = g.reshape(masks[0].shape)
        g_bias = flat.sum((0, 2)) if ctx.needs_input_grad[2] else None
        slope = columns if r_x is None else columns * r_x
        size = None if codes is None else r_y / ctx.top / r_x  # of one code
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted
            whole = flat * slope
            g_r = None if codes is None else (whole * codes * size).sum()
            gys = [(whole * mask).view(ctx.shape) for mask in masks]
        else:
            gys, g_r = _backward_in_blocks(flat, slope, masks, codes, size)
            gys = [gy.view(ctx.shape) for gy in gys]
        return None, None if g_r is None else g_r.view(r_x.shape), g_bias, None, None, None, None, None, *gys


def _backward_in_blocks(
    g: Tensor, slope: Tensor, masks: list[Tensor], codes: Tensor | None, size: Tensor | None
) -> tuple[list[Tensor], Tensor | None]:
    gys = [torch.empty_like(g) for _ in masks]
    total = None if size is None else torch.zeros_like(size)
    for b in _blocks(len(g), g.shape[1:].numel()):
        gy = torch.mul(g[b], slope, out=gys[0][b])
        if codes is not None and total is not None and size is not None:
            total += (gy * codes[b]).sum() * size
        for mask, out in zip(masks[1:], gys[1:], strict=True):
            torch.mul(gy, mask[b], out=out[b])
        gy.mul_(masks[0][b])
    return gys, total


def _integer(by: Converter, tiles: int) -> torch.dtype:
    most = max(-by.low, by.high) * tiles
    return torch.int8 if most <= 127 else torch.int16 if most < 1 << 15 else torch.int32
