"""What encoder and decoder are made of: normalisation, residual blocks, single-head and linear attention, resampling.

The modules carry the names of the released checkpoints (`norm1`, `nin_shortcut`, `proj_out` ...), so that those load as they are.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmkit.denoiser.attention import attend
from ldmkit.denoiser.layers import undivided, usual_groups

AttentionType = Literal["none", "vanilla", "linear"]


class Normaliser(Protocol):
    """Normalises (b, c, h, w) in place of a layer's own statistics: the exact tiled form puts it into every `Norm`."""

    def __call__(self, norm: Norm, x: Tensor) -> Tensor: ...


class Norm(nn.GroupNorm):
    """Group normalisation, eps 1e-6, in `groups` groups; without a number, in `usual_groups(channels)`.

    Raises UsageError where `groups` does not divide the channels.
    """

    def __init__(self, channels: int, groups: int | None = None) -> None:
        if groups is not None and channels % groups:
            raise undivided(groups, [channels])
        super().__init__(groups or usual_groups(channels), channels, eps=1e-6)
        self.normaliser: Normaliser | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        if self.normaliser is not None:
            return self.normaliser(self, input)
        return super().forward(input)


def silu(x: Tensor) -> Tensor:
    """SiLU, of any shape; in place where no gradient will be asked for, which saves one activation map at the peak."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResnetBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), with a 1x1 convolution on the skip where the width changes."""

    def __init__(self, inputs: int, outputs: int, dropout: float, groups: int | None = None) -> None:
        super().__init__()
        self.norm1 = Norm(inputs, groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = Norm(outputs, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        # Registered only where it exists: the released state dicts have no key for an identity.
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)
        self.widens = inputs != outputs

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) -> (b, outputs, h, w)."""
        h = self.conv1(silu(self.norm1(x)))
        h = self.conv2(self.dropout(silu(self.norm2(h))))
        return h + (self.nin_shortcut(x) if self.widens else x)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention over all positions with one head as wide as the features."""

    def __init__(self, channels: int, groups: int | None = None) -> None:
        super().__init__()
        self.norm = Norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        h = self.norm(x)
        # (b, c, h, w) -> (b, 1 head, h w, c), contiguous: otherwise torch forms the whole (h w, h w) matrix.
        q, k, v = (layer(h).flatten(2).transpose(1, 2).contiguous().unsqueeze(1) for layer in (self.q, self.k, self.v))
        h = attend(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class LinearAttention(nn.Module):
    """Attention of linear cost (Shen et al., arXiv 1812.01243, one head): softmax over the positions of the keys only.

    As in the original code it *replaces* its input: there is neither a norm before it nor a skip around it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.to_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        q, k, v = self.to_qkv(x).flatten(2).chunk(3, dim=1)  # each (b, c, h w)
        context = v @ k.softmax(dim=-1).transpose(1, 2)  # (b, c of v, c of k)
        return self.to_out((context @ q).reshape(x.shape))  # type: ignore[no-any-return]


def attention(kind: AttentionType, channels: int, groups: int | None = None) -> nn.Module:
    """The attention layer of a recipe's `attention_type`; `none` is an identity without parameters."""
    if kind == "vanilla":
        return Attention(channels, groups)
    return LinearAttention(channels) if kind == "linear" else nn.Identity()


class Downsample(nn.Module):
    """Half the size by a strided convolution, padded by one on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h // 2, w // 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class DoublingConv2d(nn.Conv2d):
    """A 3x3 convolution of a map that is doubled by nearest neighbour first.

    On a CPU in full precision both are one transposed convolution, equal up to rounding: no map is repeated fourfold before it
    is summed again, which takes half the time forwards and backwards.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, 2 h, 2 w)."""
        if input.device.type == "cpu" and input.dtype in (torch.float32, torch.float64):
            return F.conv_transpose2d(input, folded(self.weight), self.bias, stride=2, padding=1)
        return super().forward(F.interpolate(input, scale_factor=2.0, mode="nearest"))


class Upsample(nn.Module):
    """Twice the size by nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv: nn.Module = DoublingConv2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, 2 h, 2 w)."""
        if isinstance(self.conv, DoublingConv2d):
            return self.conv(x)  # type: ignore[no-any-return]
        # An adapter or a quantised layer in its place convolves and knows of no doubling.
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


def folded(weight: Tensor) -> Tensor:
    """Weights (i, o, 4, 4) of the transposed convolution that doubles the size and then convolves with `weight` (o, i, 3, 3)."""
    taps = F.pad(weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    return taps[..., :-1, :-1] + taps[..., 1:, :-1] + taps[..., :-1, 1:] + taps[..., 1:, 1:]
