"""The paper's text encoder: a transformer trained together with the UNet (section 4.3.1, table 17)."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64  # whatever the width of the tokens: 8 heads are 512 wide inside a 1280-wide model


class TextTransformer(nn.Module):
    """Learned positions, pre-norm self-attention and feed-forward blocks, a last LayerNorm.

    Args:
        vocabulary: how many token ids there are.
        length: the most tokens.
        width: width of the tokens.
        depth: how many pairs of attention and feed-forward (paper: 32).
        heads: attention heads of width 64 (paper: 8).

    Parameters are named as in the released checkpoints (`BERTEmbedder`, below ``transformer.``), so that those load as they are.
    """

    def __init__(self, *, vocabulary: int, length: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.token_emb = nn.Embedding(vocabulary, width)
        self.pos_emb = nn.ModuleDict({"emb": nn.Embedding(length, width)})
        blocks: list[nn.Module] = []
        for _ in range(depth):
            blocks.append(nn.ModuleList([nn.LayerNorm(width), SelfAttention(width, heads)]))
            blocks.append(nn.ModuleList([nn.LayerNorm(width), FeedForward(width)]))
        self.attn_layers = nn.ModuleDict({"layers": nn.ModuleList(blocks)})
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token_emb.weight, std=0.02)
        nn.init.normal_(self._positions, std=0.02)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids (b, l) int64, mask (b, l) bool, True = attend -> tokens (b, l, width)."""
        x = self.token_emb(ids) + self._positions[: ids.shape[1]]
        blocks = iter(cast(nn.ModuleList, self.attn_layers["layers"]))
        for attention, feed_forward in zip(blocks, blocks, strict=True):
            norm, attend = cast(nn.ModuleList, attention)
            x = x + attend(norm(x), mask)
            norm, feed = cast(nn.ModuleList, feed_forward)
            x = x + feed(norm(x))
        return cast(Tensor, self.norm(x))

    @property
    def _positions(self) -> Tensor:
        return cast(nn.Embedding, self.pos_emb["emb"]).weight


class SelfAttention(nn.Module):
    """Attention of `heads` heads of width 64; no bias on queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = heads * HEAD_WIDTH
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)
        self.to_out = nn.Linear(inner, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (b, l, width), mask (b, l) bool -> (b, l, width)."""
        q, k, v = (
            to(x).unflatten(-1, (self.heads, HEAD_WIDTH)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])
        return cast(Tensor, self.to_out(attended.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Four times as wide, plain GELU (no gate)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The released names are net.0.0 and net.2; in between lies a dropout of 0.
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU()), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (b, l, width) -> (b, l, width)."""
        return cast(Tensor, self.net(x))
