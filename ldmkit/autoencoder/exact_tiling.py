"""Tiled encoding and decoding without a difference from the untiled result, beyond rounding.

Convolutions look at a neighbourhood: a tile with a margin of one pixel a convolution is right in its core. Group norms look at
the whole image: their statistics are measured first, one norm after the other, over the cores of all tiles, and then shared.
Between two changes of resolution this takes one pass a norm, each going as far as the norm it measures, and one pass for
the result: about four times the arithmetic. Whatever attends (the middle, levels with attention) looks everywhere, and
runs untiled; it sits at low resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Generator, Tensor, nn

from ldmkit.autoencoder.kl import KLAutoencoder
from ldmkit.autoencoder.layers import Attention, LinearAttention, Norm
from ldmkit.autoencoder.networks import Decoder, DecoderLevel, Encoder, EncoderLevel
from ldmkit.autoencoder.vq import VQAutoencoder
from ldmkit.errors import UsageError

Network = VQAutoencoder | KLAutoencoder
Step = Callable[[Tensor], Tensor]


@torch.no_grad()
def exact_decode(
    autoencoder: Network, latents: Tensor, *, tile: int = 256, size: tuple[int, int] | None = None
) -> Tensor:
    """`autoencoder.decode(latents, size=size)` up to rounding; no gradient.

    Peak memory is one map before the last doubling, the image and one tile, not several maps at full resolution.

    Args:
        latents: scaled, (b, latent_channels, h, w).
        tile: side of a tile's core in pixels, at every resolution; even.
    """
    decoder = autoencoder.decoder
    z = autoencoder.decoder_input(latents)
    x: Tensor = decoder.mid(decoder.conv_in(z))
    for segment in _decoder_segments(decoder):
        x = segment.run(x, tile)
    x = decoder.add_shortcut(x, z)
    return x if size is None else x[..., : size[0], : size[1]]


@torch.no_grad()
def exact_encode(
    autoencoder: Network, images: Tensor, generators: Sequence[Generator] | Generator | None = None, *, tile: int = 256
) -> Tensor:
    """`autoencoder.encode(images, generators)` up to rounding; no gradient.

    Args:
        images: (b, image_channels, h, w) in [-1, 1].
        generators: as in `encode`.
        tile: side of a tile's core in pixels, at every resolution; even.
    """
    encoder, fitted = autoencoder.encoder, autoencoder.fit(images)
    x = fitted
    for segment in _encoder_segments(encoder):
        x = segment.run(x, tile)
    features = encoder.add_shortcut(encoder.head(encoder.mid(x)), fitted)
    return autoencoder.draw(autoencoder.posterior_from(features), generators)


class _MeasuredError(Exception):
    """A tile has reached the norm whose statistics this pass collects."""


@dataclass
class _SharedStatistics:
    """Stands in for the statistics of norms: known ones are applied, the first unknown one is measured."""

    core: tuple[slice, slice] = (slice(None), slice(None))
    known: dict[Norm, tuple[Tensor, Tensor]] = field(default_factory=dict)  # mean and variance, each (b, groups)
    measured: Norm | None = None
    sums: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)  # of each tile: entries, mean, variance

    def __call__(self, norm: Norm, x: Tensor) -> Tensor:
        if norm in self.known:
            return self._apply(norm, x)
        self.measured = norm
        part = x[..., self.core[0], self.core[1]].reshape(len(x), norm.num_groups, -1)
        variance, mean = torch.var_mean(part.to(torch.promote_types(part.dtype, torch.float32)), dim=2, correction=0)
        self.sums.append((part.shape[2], mean.double(), variance.double()))
        raise _MeasuredError

    def finish(self) -> None:
        """Put together what the tiles gave for the norm of this pass (law of total variance)."""
        assert self.measured is not None
        entries = torch.tensor([entry[0] for entry in self.sums], dtype=torch.float64, device=self.sums[0][1].device)
        shares = (entries / entries.sum()).view(-1, 1, 1)
        means = torch.stack([mean for _, mean, _ in self.sums])
        mean = (shares * means).sum(dim=0)
        within = torch.stack([variance for *_, variance in self.sums])
        self.known[self.measured] = mean, (shares * (within + (means - mean).square())).sum(dim=0)
        self.measured, self.sums = None, []

    def _apply(self, norm: Norm, x: Tensor) -> Tensor:
        mean, variance = self.known[norm]
        channels = norm.num_channels // norm.num_groups
        scale = (variance + norm.eps).rsqrt().repeat_interleave(channels, dim=1) * norm.weight.double()
        shift = norm.bias.double() - mean.repeat_interleave(channels, dim=1) * scale
        return x * scale.to(x.dtype)[..., None, None] + shift.to(x.dtype)[..., None, None]


@dataclass(frozen=True)
class _Segment:
    """Layers that act at one resolution, after a doubling of their input or before a halving of their output."""

    steps: list[nn.Module | Step]
    modules: list[nn.Module]
    up: int = 1
    down: int = 1

    @property
    def attends(self) -> bool:
        return any(isinstance(m, Attention | LinearAttention) for module in self.modules for m in module.modules())

    @property
    def margin(self) -> int:
        """One pixel for each convolution that sees neighbours, and evenly so that halving stays on the grid."""
        layers = [m for module in self.modules for m in module.modules() if isinstance(m, nn.Conv2d)]
        count = sum(layer.kernel_size[0] // 2 for layer in layers) + self.down
        return count + count % 2

    def run(self, x: Tensor, tile: int) -> Tensor:
        """The segment's result for the whole map `x` (b, c, h, w)."""
        if tile < 2 or tile % 2:
            raise UsageError(f"tile is {tile}; it must be even and at least 2")
        height, width = (side * self.up for side in x.shape[-2:])
        if self.attends or (height <= tile and width <= tile):
            return self._steps(x)
        shared = _SharedStatistics()
        with _normalised_by(self.modules, shared):
            while (result := self._pass(x, tile, shared)) is None:
                shared.finish()
        return result

    def _pass(self, x: Tensor, tile: int, shared: _SharedStatistics) -> Tensor | None:
        """Every tile once: the result, or None where the pass measured a norm."""
        result: Tensor | None = None
        height, width = (side * self.up for side in x.shape[-2:])
        for top, left in product(range(0, height, tile), range(0, width, tile)):
            rows, columns = _Span.of(top, tile, self.margin, height), _Span.of(left, tile, self.margin, width)
            shared.core = rows.within(), columns.within()
            part = x[..., rows.cut(self.up), columns.cut(self.up)]
            try:
                done = self._steps(part)
            except _MeasuredError:
                continue
            if result is None:
                result = done.new_empty(*done.shape[:2], height // self.down, width // self.down)
            core = done[..., rows.within(self.down), columns.within(self.down)]
            result[..., rows.core(self.down), columns.core(self.down)] = core
        return result

    def _steps(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


@dataclass(frozen=True)
class _Span:
    """One side of a tile in pixels of its segment: the core, and what is cut out with the margin."""

    low: int
    start: int
    stop: int
    high: int

    @classmethod
    def of(cls, start: int, tile: int, margin: int, whole: int) -> _Span:
        stop = min(start + tile, whole)
        return cls(max(0, start - margin), start, stop, min(whole, stop + margin))

    def cut(self, up: int) -> slice:
        return slice(self.low // up, -(-self.high // up))

    def core(self, down: int) -> slice:
        return slice(self.start // down, self.stop // down)

    def within(self, down: int = 1) -> slice:
        return slice((self.start - self.low) // down, (self.stop - self.low) // down)


def _decoder_segments(decoder: Decoder) -> Iterator[_Segment]:
    """One a level: the doubling before it, its blocks, and at full resolution the head."""
    before: list[nn.Module] = []
    for level in reversed(decoder.up):
        assert isinstance(level, DecoderLevel)
        layers = [*before, *_blocks(level)]
        if level.last:
            yield _Segment(
                [*layers, decoder.head], [*layers, decoder.norm_out, decoder.conv_out], up=2 if before else 1
            )
        else:
            yield _Segment(list(layers), layers, up=2 if before else 1)
            before = [level.upsample]


def _encoder_segments(encoder: Encoder) -> Iterator[_Segment]:
    """One a level: the first convolution at full resolution, the blocks, the halving after them."""
    before: list[nn.Module] = [encoder.conv_in]
    for level in encoder.down:
        assert isinstance(level, EncoderLevel)
        layers = [*before, *_blocks(level), *([] if level.last else [level.downsample])]
        yield _Segment(list(layers), layers, down=1 if level.last else 2)
        before = []


def _blocks(level: DecoderLevel | EncoderLevel) -> Iterator[nn.Module]:
    for block, attend in zip(level.block, level.attn, strict=True):
        yield block
        yield attend


@contextmanager
def _normalised_by(modules: list[nn.Module], shared: _SharedStatistics) -> Iterator[None]:
    norms = [m for module in modules for m in module.modules() if isinstance(m, Norm)]
    for norm in norms:
        norm.normaliser = shared
    try:
        yield
    finally:
        for norm in norms:
            norm.normaliser = None
