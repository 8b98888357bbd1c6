"""Attention on chips: the projections are analog; the products of activations with one another stay digital, since neither is written."""

from collections.abc import Iterator
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galvanic.nn.projection import Composite


class AnalogMultiheadAttention(Composite, nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with its four projections on a chip; scores, softmax and their product with the values are digital."""

    def matrices(self) -> Iterator[tuple[str, nn.Module, str, str | None, slice | None]]:
        for k, kind in enumerate("qkv"):
            part = slice(k * self.embed_dim, (k + 1) * self.embed_dim)
            if self._qkv_same_embed_dim:
                yield f"{kind}_projection", self, "in_proj_weight", None, part
            else:
                yield f"{kind}_projection", self, f"{kind}_proj_weight", None, None
        yield "out_projection", self.out_proj, "weight", None if self.out_proj.bias is None else "bias", None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if self.bare():
            return super().forward(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        if is_causal and attn_mask is None:
            raise RuntimeError("attention with is_causal=True needs attn_mask, as in torch.nn.MultiheadAttention")
        if not (batched := query.dim() == 3):
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        if not (len(query) == len(key) == len(value)) or key.shape[1] != value.shape[1]:
            raise RuntimeError(
                f"attention: batches or lengths differ: query {len(query)}, key {tuple(key.shape[:2])}, value {tuple(value.shape[:2])}"
            )
        q, k, v = self._projected(query, key, value)  # (batch, length, embedding)
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # (batch, heads, length, head)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) / sqrt(q.shape[-1])
            weights = F.dropout(F.softmax(scores if mask is None else scores + mask, dim=-1), dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self._modules["out_projection"](y.transpose(1, 2).flatten(-2))  # type: ignore[misc]
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _projected(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shifts = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        products = [self._modules[f"{kind}_projection"](x) for kind, x in zip("qkv", inputs, strict=True)]  # type: ignore[misc]
        q, k, v = (y if shift is None else y + shift for y, shift in zip(products, shifts, strict=True))
        batch = len(q)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = torch.cat([k, self.bias_k.expand(batch, 1, -1)], 1), torch.cat([v, self.bias_v.expand(batch, 1, -1)], 1)
        if self.add_zero_attn:
            k, v = (torch.cat([t, t.new_zeros(batch, 1, t.shape[-1])], 1) for t in (k, v))
        return q, k, v

    def _mask(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
        """What is added to the scores, (batch, heads or 1, length, keys); keys that the module itself adds are never masked."""
        total: Tensor | None = None
        if attn_mask is not None:
            m = _additive(attn_mask, q)
            total = m.unflatten(0, (len(q), self.num_heads)) if m.dim() == 3 else m[None, None]
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, q)[:, None, None]
            total = padding if total is None else total + padding
        return None if total is None else F.pad(total, (0, k.shape[1] - total.shape[-1]))


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else mask.to(like.dtype)
