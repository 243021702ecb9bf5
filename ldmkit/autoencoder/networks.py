"""Encoder and decoder of the paper: residual convolutions with strided down- and nearest-neighbour up-sampling."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldmkit.autoencoder.config import NetworkConfig
from ldmkit.autoencoder.cosine_code import cosine_code
from ldmkit.autoencoder.layers import Downsample, Norm, ResnetBlock, Upsample, attention, silu


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by its attention (an identity where the level has none)."""

    def __init__(self, config: NetworkConfig, level: int, widths: Iterable[tuple[int, int]]) -> None:
        super().__init__()
        kind = config.attention_type if config.attends(level) else "none"
        self.block = nn.ModuleList()
        self.attn = nn.ModuleList()
        for inputs, outputs in widths:
            self.block.append(ResnetBlock(inputs, outputs, config.dropout, config.groups))
            self.attn.append(attention(kind, outputs, config.groups))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c', h, w)."""
        for block, attend in zip(self.block, self.attn, strict=True):
            x = attend(block(x))
        return x


class EncoderLevel(Level):
    """A level of the encoder, and the halving after it."""

    def __init__(self, config: NetworkConfig, level: int, inputs: int, outputs: int) -> None:
        super().__init__(config, level, _widths(inputs, outputs, config.level_blocks[level]))
        self.last = level == len(config.widths) - 1
        if not self.last:
            self.downsample = Downsample(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c', h / 2, w / 2), or (b, c', h, w) at the last level."""
        x = super().forward(x)
        return x if self.last else self.downsample(x)


class DecoderLevel(Level):
    """A level of the decoder, and the doubling after it."""

    def __init__(self, config: NetworkConfig, level: int, inputs: int, outputs: int) -> None:
        super().__init__(config, level, _widths(inputs, outputs, config.level_blocks[level] + 1))
        self.last = level == 0
        if not self.last:
            self.upsample = Upsample(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c', 2 h, 2 w), or (b, c', h, w) at full resolution."""
        x = super().forward(x)
        return x if self.last else self.upsample(x)


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution, with attention between them if asked for."""

    def __init__(self, config: NetworkConfig, width: int, network: Literal["encoder", "decoder"]) -> None:
        super().__init__()
        kind = config.attention_type if config.attends_middle(network) else "none"
        self.block_1 = ResnetBlock(width, width, config.dropout, config.groups)
        self.attn_1 = attention(kind, width, config.groups)
        self.block_2 = ResnetBlock(width, width, config.dropout, config.groups)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w)."""
        return self.block_2(self.attn_1(self.block_1(x)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Image (b, image_channels, h, w) -> (b, outputs, h / f, w / f); `down.0` is full resolution.

    With `config.shortcut`, the first `latent_channels` of the outputs are what the convolutions add to a linear map of the f x f
    pixels that a latent stands for; the decoder has the map back. The map starts as `cosine_code` and the convolutions add
    nothing yet, so that training starts at a good linear code and goes on from there. A linear code holds for colours that
    training did not show, which group norms, each relative to its own image, learn slowly. The idea of a linear way beside down-
    and upsampling is that of residual autoencoding (Chen et al. 2024, arXiv 2410.10733), where nothing in it is learned.
    """

    def __init__(self, config: NetworkConfig, outputs: int) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.image_channels, config.channels, 3, padding=1)
        self.down = nn.ModuleList(
            EncoderLevel(config, level, inputs, width)
            for level, (inputs, width) in enumerate(zip((config.channels, *widths), widths, strict=False))
        )
        self.mid = Middle(config, widths[-1], "encoder")
        self.norm_out = Norm(widths[-1], config.groups)
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)
        self.checkpointing = config.checkpoint  # changes no number: to be switched at will
        self.factor, pixels = config.downsample, config.image_channels * config.downsample**2
        self.shortcut = nn.Conv2d(pixels, config.latent_channels, 1) if config.shortcut else None
        if self.shortcut is not None:
            start_as(self.shortcut, _code(config))
            start_as(self.conv_out, None)

    def forward(self, x: Tensor) -> Tensor:
        """(b, image_channels, h, w) -> (b, outputs, h / f, w / f)."""
        features = self.conv_in(x)
        for level in (*self.down, self.mid):
            features = recomputed(level, features) if self.checkpointing else level(features)
        return self.add_shortcut(self.head(features), x)

    def add_shortcut(self, outputs: Tensor, images: Tensor) -> Tensor:
        """The outputs (b, outputs, h / f, w / f) with the linear map of the images (b, image_channels, h, w), if there is one."""
        if self.shortcut is None:
            return outputs
        linear = self.shortcut(F.pixel_unshuffle(images, self.factor))
        return outputs + F.pad(linear, (0, 0, 0, 0, 0, outputs.shape[1] - linear.shape[1]))

    def head(self, x: Tensor) -> Tensor:
        """The last norm, activation and convolution."""
        return self.conv_out(silu(self.norm_out(x)))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """(b, latent_channels, h, w) -> image (b, image_channels, f h, f w); `up.0` is full resolution and runs last."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(config, widths[-1], "decoder")
        self.up = nn.ModuleList(
            DecoderLevel(config, level, inputs, width)
            for level, (inputs, width) in enumerate(zip((*widths[1:], widths[-1]), widths, strict=True))
        )
        self.norm_out = Norm(widths[0], config.groups)
        self.conv_out = nn.Conv2d(widths[0], config.image_channels, 3, padding=1)
        self.checkpointing = config.checkpoint
        self.factor, pixels = config.downsample, config.image_channels * config.downsample**2
        self.shortcut = nn.Conv2d(config.latent_channels, pixels, 1) if config.shortcut else None
        if self.shortcut is not None:
            start_as(self.shortcut, _code(config).T)
            start_as(self.conv_out, None)

    def forward(self, z: Tensor) -> Tensor:
        """(b, latent_channels, h, w) -> (b, image_channels, f h, f w)."""
        x = self.conv_in(z)
        for level in (self.mid, *reversed(self.up)):
            x = recomputed(level, x) if self.checkpointing else level(x)
        return self.add_shortcut(self.head(x), z)

    def add_shortcut(self, images: Tensor, z: Tensor) -> Tensor:
        """The images (b, image_channels, f h, f w) with the linear map of (b, latent_channels, h, w), if there is one."""
        return images if self.shortcut is None else images + F.pixel_shuffle(self.shortcut(z), self.factor)

    def head(self, x: Tensor) -> Tensor:
        """The last norm, activation and convolution."""
        return self.conv_out(silu(self.norm_out(x)))  # type: ignore[no-any-return]


def recomputed(level: nn.Module, x: Tensor) -> Tensor:
    """`level(x)` of x (b, c, h, w), whose activations are computed again in the backward pass instead of being kept."""
    if not torch.is_grad_enabled():
        return level(x)  # type: ignore[no-any-return]
    return checkpoint(level, x, use_reentrant=False)  # type: ignore[no-any-return]


@torch.no_grad()
def start_as(convolution: nn.Conv2d, matrix: Tensor | None) -> None:
    """Sets a 1x1 convolution to `matrix` (out, in), or any to zero; no bias."""
    if convolution.bias is not None:
        convolution.bias.zero_()
    if matrix is None:
        convolution.weight.zero_()
    else:
        convolution.weight.copy_(matrix[:, :, None, None])


def _code(config: NetworkConfig) -> Tensor:
    return cosine_code(config.image_channels, config.downsample, config.latent_channels)


def _widths(inputs: int, outputs: int, blocks: int) -> list[tuple[int, int]]:
    """(in, out) of each residual block of a level: the first one changes the width."""
    return [(inputs, outputs), *[(outputs, outputs)] * (blocks - 1)]
