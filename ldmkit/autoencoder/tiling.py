"""Large images at bounded memory, tile by tile, with overlaps blended.

Group normalisation and attention look at the whole image, and here see a tile: the result differs from the untiled one, by
what `benchmarks/tiled_decode.py` measures. `exact` has a form without that difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Generator, Tensor

from ldmkit.autoencoder.base import Autoencoder
from ldmkit.autoencoder.posterior import Posterior
from ldmkit.errors import UsageError


def tiled_decode(
    autoencoder: Autoencoder, latents: Tensor, *, tile: int = 64, overlap: int = 16, size: tuple[int, int] | None = None
) -> Tensor:
    """`autoencoder.decode(latents, size=size)` in tiles; peak memory is the image and the decoding of one tile.

    Args:
        latents: scaled, (b, latent_channels, h, w); a grid no larger than `tile` is decoded whole, exactly.
        tile: side of a tile in latent pixels; the more, the nearer to the untiled result.
        overlap: of neighbouring tiles in latent pixels, blended linearly.

    Raises:
        UsageError: `overlap` not below `tile`.
    """
    factor = autoencoder.factor
    images = _blend(latents, autoencoder.decode, tile=tile, overlap=overlap, up=factor)
    return images if size is None else images[..., : size[0], : size[1]]


def tiled_encode(
    autoencoder: Autoencoder,
    images: Tensor,
    generators: Sequence[Generator] | Generator | None = None,
    *,
    tile: int = 64,
    overlap: int = 16,
) -> Tensor:
    """`autoencoder.encode(images, generators)` in tiles; scaled latents.

    Args:
        images: (b, image_channels, h, w) in [-1, 1].
        generators: as in `encode`; the noise is drawn once for the whole latent.
        tile, overlap: in latent pixels, as in `tiled_decode`.

    Raises UsageError where the overlap is not from 0 to below the tile.
    """

    def moments(part: Tensor) -> Tensor:
        found = autoencoder.posterior(part)
        return found.mean if found.logvar is None else torch.cat([found.mean, found.logvar], dim=1)

    factor, channels = autoencoder.factor, autoencoder.latent_channels
    blended = _blend(autoencoder.fit(images), moments, tile=tile * factor, overlap=overlap * factor, down=factor)
    mean, logvar = blended[:, :channels], blended[:, channels:]
    return autoencoder.draw(Posterior(mean, logvar if logvar.shape[1] else None), generators)


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles of one side begin: evenly, the last one flush with the end."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def _blend(
    x: Tensor, run: Callable[[Tensor], Tensor], *, tile: int, overlap: int, up: int = 1, down: int = 1
) -> Tensor:
    """Run tiles of `x` (b, c, h, w) and average their results (up / down times the size), each weighted by its ramps."""
    if not 0 <= overlap < tile:
        raise UsageError(f"overlap is {overlap} and tile is {tile}; the overlap must be from 0 to below the tile")
    height, width = x.shape[-2:]
    total: Tensor | None = None
    precise = torch.promote_types(x.dtype, torch.float32)
    weight = torch.zeros(height * up // down, width * up // down, device=x.device, dtype=precise)
    for top, left in product(starts(height, tile, overlap), starts(width, tile, overlap)):
        part = run(x[..., top : top + tile, left : left + tile])
        if total is None:
            total = part.new_zeros(*part.shape[:2], *weight.shape)
        rows, columns = (
            slice(start * up // down, start * up // down + side) for start, side in _spans(part, top, left)
        )
        ramp = _ramps(part.shape[-2], rows, len(weight), overlap * up // down).to(weight).unsqueeze(1)
        ramp = ramp * _ramps(part.shape[-1], columns, weight.shape[1], overlap * up // down).to(weight)
        total[..., rows, columns] += part * ramp.to(part.dtype)
        weight[rows, columns] += ramp
    assert total is not None
    return total.div_(weight.to(total.dtype))


def _spans(part: Tensor, top: int, left: int) -> Iterator[tuple[int, int]]:
    yield top, part.shape[-2]
    yield left, part.shape[-1]


def _ramps(side: int, place: slice, whole: int, overlap: int) -> Tensor:
    """Weights along one side of a tile: rising and falling over the overlap, except at the image's own edges."""
    positions = torch.arange(side, dtype=torch.float64)
    weights = torch.ones(side, dtype=torch.float64)
    if place.start > 0 and overlap:
        weights = torch.minimum(weights, (positions + 0.5) / overlap)
    if place.stop < whole and overlap:
        weights = torch.minimum(weights, (side - positions - 0.5) / overlap)
    return weights
