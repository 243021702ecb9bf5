"""What every block shares: the call contract, normalisation, resampling, zero initialisation."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Context(NamedTuple):
    """What a block may read besides its input."""

    embedding: Tensor  # (b, e): timestep, plus the vector port
    tokens: Tensor | None = None  # (b, l, d)
    mask: Tensor | None = None  # (b, 1, 1, l) bool, True = attend


class Stage(nn.ModuleList):
    """Blocks called one after the other as ``block(x, context)``; checkpointed one by one if asked to."""

    def forward(self, x: Tensor, context: Context, *, checkpointed: bool = False) -> Tensor:
        for block in self:
            # A block's activations are recomputed in the backward pass; dropout draws the same mask again.
            x = checkpoint(block, x, context, use_reentrant=False) if checkpointed else block(x, context)
        return x


class Stem(nn.Conv2d):
    """The first convolution, called like any other block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, context: Context) -> Tensor:  # type: ignore[override]
        """(b, inputs, h, w) -> (b, outputs, h, w)."""
        return super().forward(x)


class Downsample(nn.Module):
    """Half the size by a strided convolution, padded on both sides (the autoencoder pads on one side only)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(b, c, h, w) -> (b, c, h / 2, w / 2)."""
        return self.op(x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Twice the size by nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(b, c, h, w) -> (b, c, 2 h, 2 w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


def group_norm(channels: int, *, groups: int | None = None, eps: float = 1e-5) -> nn.GroupNorm:
    """Group norm in `groups` groups, or as many of them as divide `channels`.

    Without `groups`, 32 as in every released model, but at least four channels in a group: in a group of one channel
    the norm takes the channel's mean away, and with it all that the embedding of timestep and vector added to it.
    """
    count = math.gcd(groups or 32, channels)
    while groups is None and count > 1 and channels < 4 * count:
        count //= 2
    return nn.GroupNorm(count, channels, eps=eps)


def zeroed(module: AnyModule) -> AnyModule:
    """Set the parameters of `module` to zero, so that the branch it ends adds nothing at the start of training."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
