"""Equivariance of the decoder: a latent that is scaled or turned becomes the scaled or turned image.

Kouzelis et al. 2025, "EQ-VAE: Equivariance regularized latent space for improved generative image modeling" (arXiv 2502.09509,
equation 6). A latent space that knows nothing of neighbourhood is hard for a diffusion model; this term smooths it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ldmkit.errors import UsageError
from ldmkit.plugins.ranges import NotNegative, Portion, Positive


@dataclass(frozen=True, kw_only=True)
class EquivarianceOptions:
    """The decoder of a scaled or turned latent gives the scaled or turned image (Kouzelis et al. 2025, arXiv 2502.09509).

    Args:
        weight: of the term, relative to the reconstruction's.
        smallest: sides are scaled by factors that are uniform from this to 1, each side by its own; 1 leaves sizes alone.
        turns: also turn by a random number of quarters.
        every: the term is added in one of so many steps, `weight` times as strong in it: it costs a second pass of the decoder.
    """

    weight: NotNegative = 1.0
    smallest: Portion = 0.25
    turns: bool = True
    every: Positive = 1

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise UsageError(f"equivariance weight is {self.weight}; it must not be negative")
        if not 0 < self.smallest <= 1:
            raise UsageError(f"equivariance smallest is {self.smallest}; it is above 0 and at most 1")
        if self.every < 1:
            raise UsageError(f"equivariance every is {self.every}; it is a number of steps, 1 or more")


@dataclass(frozen=True)
class Transformation:
    """First to `grid` cells (h, w), then `quarters` counter-clockwise."""

    grid: tuple[int, int]
    quarters: int = 0

    def of(self, tensor: Tensor, cell: int = 1) -> Tensor:
        """A map (b, c, h, w) whose cells have `cell` entries a side: resized (bicubic, antialiased), then turned."""
        size = (self.grid[0] * cell, self.grid[1] * cell)
        if tensor.shape[-2:] != size:
            tensor = F.interpolate(tensor, size, mode="bicubic", antialias=True)
        return torch.rot90(tensor, self.quarters, dims=(-2, -1))


def draw(options: EquivarianceOptions, grid: tuple[int, int], generator: Generator) -> Transformation:
    """A transformation of maps of `grid` (h, w) cells, at least one a side. One batch has one: its images have one size."""
    share = options.smallest + (1 - options.smallest) * torch.rand(2, generator=generator)
    quarters = int(torch.randint(4, (), generator=generator)) if options.turns else 0
    height, width = (max(1, round(side * float(part))) for side, part in zip(grid, share, strict=True))
    return Transformation((height, width), quarters)


def pair(
    decode: Callable[[Tensor], Tensor], images: Tensor, latents: Tensor, transformation: Transformation
) -> tuple[Tensor, Tensor]:
    """The transformed images (b, c, h, w), and what `decode` makes of the equally transformed latents (b, d, h / f, w / f)."""
    cell = images.shape[-1] // latents.shape[-1]
    return transformation.of(images, cell).clamp(-1, 1), decode(transformation.of(latents))
