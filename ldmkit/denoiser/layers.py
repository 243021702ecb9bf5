"""What every block shares: the call contract, normalisation, resampling, zero initialisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldmkit.errors import UsageError

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Context(NamedTuple):
    """What a block may read besides its input."""

    embedding: Tensor  # (b, e): timestep, plus the vector port
    tokens: Tensor | None = None  # (b, l, d)
    mask: Tensor | None = None  # (b, 1, 1, l) bool, True = attend
    size: tuple[int, int] | None = None  # (h, w) that an upsampling ends with, where that is no double


class Stage(nn.ModuleList):
    """Blocks called one by one as ``block(x, context)``, x (b, c, h, w); checkpointed one by one if asked to."""

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
        """(b, c, h, w) -> (b, c, h / 2, w / 2), halves rounded up."""
        return self.op(x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Twice the size by nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(b, c, h, w) -> (b, c, 2 h, 2 w), or `context.size`."""
        return self.conv(cut(F.interpolate(x, scale_factor=2.0, mode="nearest"), context.size))  # type: ignore[no-any-return]


def cut(x: Tensor, size: tuple[int, int] | None) -> Tensor:
    """(b, c, h, w) without the last row or column that an odd size does not have; unchanged where `size` is None."""
    return x if size is None else x[..., : size[0], : size[1]]


def group_norm(channels: int, *, groups: int | None = None, eps: float = 1e-5) -> nn.GroupNorm:
    """Group norm in `groups` groups; without a number, in `usual_groups(channels)`. UsageError where they do not divide."""
    if groups is not None and channels % groups:
        raise undivided(groups, [channels])
    return nn.GroupNorm(groups or usual_groups(channels), channels, eps=eps)


def usual_groups(channels: int) -> int:
    """32 groups as in every released model, or the most that divide `channels`, but at least four channels in a group.

    In a group of one channel the norm takes the channel's mean away, and with it all that the embedding of timestep and vector
    added to it.
    """
    count = math.gcd(32, channels)
    while count > 1 and channels < 4 * count:
        count //= 2
    return count


def undivided(groups: int, widths: Sequence[int]) -> UsageError:
    """The UsageError for a number of groups that does not divide all of these widths."""
    wrong = next(width for width in widths if width % groups)
    most = math.gcd(*widths)
    valid = [number for number in range(1, most + 1) if most % number == 0]
    return UsageError(
        f"groups is {groups}, which does not divide {wrong} channels",
        hint=f"of the widths {', '.join(map(str, widths))} all are divided by {', '.join(map(str, valid))}; or leave groups out",
    )


def zeroed(module: AnyModule) -> AnyModule:
    """Set the parameters of `module` to zero, so that the branch it ends adds nothing at the start of training."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
