"""Attention over the latent grid, and between the grid and tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmkit.denoiser.layers import Context, group_norm, zeroed
from ldmkit.denoiser.pointwise import PointwiseConv1d


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(query key^T / sqrt(d)) value: (b, heads, n, d) and (b, heads, l, d) twice -> (b, heads, n, d).

    On a CPU, where a gradient will be asked for, 16-bit types are computed in float32: the backward pass of torch's kernel takes
    a multiple of the time in them.
    """
    half = query.dtype in (torch.bfloat16, torch.float16)
    if not (half and query.device.type == "cpu" and query.requires_grad):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        found = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=mask)
    return found.to(query.dtype)


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of the grid, for a UNet without tokens (Dhariwal & Nichol 2021).

    The rows of `qkv` are interleaved per head: head 0's query, key, value, then head 1's (the released order).
    """

    def __init__(self, channels: int, heads: int, *, groups: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, groups=groups)
        self.qkv = PointwiseConv1d(channels, 3 * channels)
        self.proj_out = zeroed(PointwiseConv1d(channels, channels))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x).flatten(2)).transpose(
            1, 2
        )  # (b, h * w, 3 c): c lies last, the attention needs no copies
        qkv = qkv.reshape(b, h * w, self.heads, 3, c // self.heads)
        query, key, value = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # each (b, heads, h * w, c / heads)
        attended = attend(query, key, value).transpose(1, 2).flatten(2)
        return x + self.proj_out(attended.transpose(1, 2)).reshape(x.shape)  # type: ignore[no-any-return]


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
        # Each (b, heads, n or l, width / heads).
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        attended = attend(query, key, value, mask)
        return self.to_out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
