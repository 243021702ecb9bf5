"""PatchGAN (Isola et al., arXiv 1611.07004): is each patch of this image real?"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, get_args

from torch import Tensor, nn

from ldmkit.errors import UsageError

NormType = Literal["batch", "group", "none"]
KERNEL = 4


class PatchDiscriminator(nn.Module):
    """Convolutions of kernel 4: `layers` of them halve the size, two more look at the neighbourhood.

    Module names and initialisation (N(0, 0.02) for convolutions, N(1, 0.02) for norms) are those of the released models.

    Args:
        image_channels: channels of what it judges, conditions included.
        layers: 2 or 3 in the paper.
        channels: width of the first convolution; doubles with each, up to eightfold.
        norm: `batch` as released; `group` and `none` do not depend on the batch, nor on the ranks.

    Raises UsageError for `layers` outside 1 to 6, an unknown `norm`, or fewer than 1 channel.
    """

    def __init__(self, image_channels: int, *, layers: int = 3, channels: int = 64, norm: NormType = "batch") -> None:
        super().__init__()
        if not 1 <= layers <= 6:
            raise UsageError(f"discriminator layers is {layers}; allowed are 1 to 6 (the paper has 2 and 3)")
        if norm not in get_args(NormType):
            raise UsageError(f"discriminator norm is {norm!r}; allowed are {', '.join(get_args(NormType))}")
        if channels < 1:
            raise UsageError(f"discriminator channels is {channels}; it must be at least 1")
        widths = [channels * min(2**layer, 8) for layer in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(image_channels, channels, KERNEL, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            stride = 2 if layer < layers else 1
            # A batch norm takes the mean away, and a bias with it.
            parts += [nn.Conv2d(inputs, outputs, KERNEL, stride=stride, padding=1, bias=norm != "batch")]
            parts += [_norm(norm, outputs), nn.LeakyReLU(0.2)]
        parts.append(nn.Conv2d(widths[-1], 1, KERNEL, padding=1))
        self.main = nn.Sequential(*parts)
        self.layers = layers
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of being real, one a patch: (b, c, h, w) -> (b, 1, h', w').

        Raises:
            UsageError: images too small to leave a patch.
        """
        height, width = images.shape[-2:]
        if min(height, width) < self.least_size:
            raise UsageError(
                f"a discriminator of {self.layers} layers needs {self.least_size} pixels or more, not {height}x{width}",
                hint="use fewer `layers` in autoencoder.loss.adversarial",
            )
        return self.main(images)  # type: ignore[no-any-return]

    @property
    def least_size(self) -> int:
        """The smallest side that leaves one patch: the last two convolutions need 3, each halving before doubles it."""
        return int(3 * 2**self.layers)


def _norm(norm: NormType, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(32, channels), channels) if norm == "group" else nn.Identity()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
