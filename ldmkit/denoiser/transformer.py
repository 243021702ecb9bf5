"""The spatial transformer: how tokens reach the UNet."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldmkit.denoiser.attention import CrossAttention
from ldmkit.denoiser.layers import Context, group_norm, zeroed
from ldmkit.denoiser.pointwise import PointwiseConv2d


class GEGLU(nn.Module):
    """``value * gelu(gate)`` of one projection (Shazeer 2020)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, inputs) -> (b, n, outputs)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Gated linear unit, four times as wide inside."""

    def __init__(self, width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Dropout(dropout), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, width) -> (b, n, width)."""
        return self.net(x)  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each after a layer norm and added to its input.

    This is the order of the released code; the paper's table B.1 prints the feed-forward before the cross-attention.
    Without `context_width` the second attention is self-attention too, as the released code has it; with `only_cross` the first
    one is attention to the tokens too.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        context_width: int | None = None,
        dropout: float = 0.0,
        only_cross: bool = False,
    ) -> None:
        super().__init__()
        self.reads_tokens, self.only_cross = context_width is not None, only_cross
        first = context_width if only_cross and context_width else width
        self.attn1 = CrossAttention(width, first, heads=heads, dropout=dropout)
        self.ff = FeedForward(width, dropout=dropout)
        self.attn2 = CrossAttention(width, context_width or width, heads=heads, dropout=dropout)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        """x (b, n, width), tokens (b, l, context width), mask (b, 1, 1, l) -> (b, n, width)."""
        normed = self.norm1(x)
        x = x + (self.attn1(normed, tokens, mask) if self.only_cross else self.attn1(normed, normed))
        normed = self.norm2(x)
        if self.reads_tokens:
            assert tokens is not None
            x = x + self.attn2(normed, tokens, mask)
        else:
            x = x + self.attn2(normed, normed)
        return x + self.ff(self.norm3(x))  # type: ignore[no-any-return]


class SpatialTransformer(nn.Module):
    """`depth` transformer blocks over the pixels of the grid (the paper, appendix E.2.1).

    `linear` projects in and out with linear layers (SD 2, SDXL) in place of 1x1 convolutions: the same numbers, other
    parameter shapes. The projection out starts at zero.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        depth: int = 1,
        context_width: int | None = None,
        dropout: float = 0.0,
        linear: bool = False,
        groups: int | None = None,
        only_cross: bool = False,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = group_norm(channels, groups=groups, eps=1e-6)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads=heads, context_width=context_width, dropout=dropout, only_cross=only_cross)
            for _ in range(depth)
        )
        self.proj_in = nn.Linear(channels, channels) if linear else PointwiseConv2d(channels, channels)
        self.proj_out = zeroed(nn.Linear(channels, channels) if linear else PointwiseConv2d(channels, channels))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        h = self.norm(x)
        # A linear layer reads pixels with their channels last, a convolution a grid; views of one another both ways.
        h = self.proj_in(_pixels(h)) if self.linear else _pixels(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, context.tokens, context.mask)
        size = x.shape[2:]
        h = _grid(self.proj_out(h), size) if self.linear else self.proj_out(_grid(h, size))
        return x + h.reshape(x.shape)


def _pixels(x: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, h w, c)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _grid(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """(b, h w, c) -> (b, c, h, w)."""
    return x.reshape(x.shape[0], *size, x.shape[2]).permute(0, 3, 1, 2)
