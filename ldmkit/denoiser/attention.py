"""Attention over the latent grid, and between the grid and tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldmkit.denoiser.layers import Context, group_norm, zeroed


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of the grid, for a UNet without tokens (Dhariwal & Nichol 2021).

    The rows of `qkv` are interleaved per head: head 0's query, key, value, then head 1's (the released order).
    """

    def __init__(self, channels: int, heads: int, *, groups: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, groups=groups)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        b, c, h, w = x.shape
        normed = self.norm(x).flatten(2).transpose(1, 2)  # (b, h * w, c)
        # The 1x1 convolutions are applied as linear layers: with c last, the attention needs no copies.
        qkv = F.linear(normed, self.qkv.weight.flatten(1), self.qkv.bias)
        qkv = qkv.view(b, h * w, self.heads, 3, c // self.heads)
        query, key, value = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # each (b, heads, h * w, c / heads)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        added = F.linear(attended, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return x + added.transpose(1, 2).reshape(x.shape)


class CrossAttention(nn.Module):
    """Attention from `width` wide queries to `context_width` wide tokens (the queries' own width for self-attention)."""

    def __init__(self, width: int, context_width: int, *, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (b, n, width), tokens (b, l, context width), mask (b, 1, 1, l) True = attend -> (b, n, width)."""
        query, key, value = self.to_q(x), self.to_k(tokens), self.to_v(tokens)
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)
        )  # each (b, heads, n or l, width / heads)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.to_out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
