"""A partner image, pixel on pixel with the one to be made: joined to the latent (paper, section 4.3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field as Range
from torch import Generator

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, LatentSpec, Ports, Tensors, as_tensor
from ldmkit.data import NO_FIELDS, Fields
from ldmkit.errors import DataError, RecipeError

SLACK = 1e-3  # beyond [-1, 1]: rounding


class ImageConditioner(Conditioner):
    """An image of the same scene by concat: depth, edges, a sketch, another season, other bands.

    Args:
        channels: of the partner image; `fit` takes what the source knows, 3 where it knows nothing. With `latent` it is what the
            autoencoder takes, and a partner of one channel is repeated to it.
        latent: the partner's latent, by the model's own autoencoder, instead of its pixels.
        unshuffle: every pixel of the partner, a block of factor x factor pixels as channels of one place of the grid; by default
            the mean over the block.
        range: the numbers that stand for -1 and 1, where the data are no images: [0, 80] of a depth in metres; others are cut.

    The null is zeros: a grey image.
    """

    reads = aligned = ("source",)

    def __init__(
        self,
        *,
        channels: Annotated[int, Range(gt=0, le=64)] | None = None,
        latent: bool = False,
        unshuffle: bool = False,
        range: tuple[float, float] | None = None,  # the recipe's word, as in `value_range`
        space: LatentSpec | None = None,
    ) -> None:
        super().__init__()
        if latent and unshuffle:
            raise RecipeError("latent and unshuffle are both given", hint="give one: the latent, or every pixel")
        if (latent or unshuffle) and space is None:
            raise RecipeError(
                "latent and unshuffle need to know the latent space", hint="give space=LatentSpec(...) beside it"
            )
        if range is not None and not range[0] < range[1]:
            raise RecipeError(f"range is {list(range)}; the first number is the lower one")
        self.channels, self.latent, self.range = channels or 3, latent, range
        self.factor = space.factor if unshuffle and space is not None else 0
        emitted = space.channels if latent and space is not None else self.channels * max(self.factor, 1) ** 2
        self.emits = Ports(concat=emitted)

    @classmethod
    def fit(
        cls, options: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], fields: Fields = NO_FIELDS
    ) -> Mapping[str, Any]:
        """`channels`, from what the source knows, or from the first partner there is."""
        if options.get("latent") or options.get("channels") is not None:
            return {}
        known = fields.get("source")
        if known is not None and known.channels:
            return {"channels": known.channels}
        for sample in samples:
            if (value := sample["source"]) is not None:
                found = as_tensor(value)
                return {"channels": 1 if found.ndim == 2 else found.shape[0]}
        raise DataError("no sample has a `source`", hint="name the data's partner images: `fields: {source: depth}`")

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """{"source": (channels, h, w) in [-1, 1]}; raises `DataError` for other channels, NaN, and values out of range."""
        source = as_tensor(sample["source"]).float()
        source = source[None] if source.ndim == 2 else source
        if self.latent and source.ndim == 3 and source.shape[0] == 1:
            source = source.expand(self.channels, -1, -1)
        if source.ndim != 3 or source.shape[0] != self.channels or not source.numel():
            raise DataError(
                f"source: the image is {tuple(source.shape)}; ({self.channels}, h, w) is needed", hint="see `channels`"
            )
        if not source.isfinite().all():
            raise DataError("source: some values are NaN or infinite", hint="fill them, or leave the sample out")
        if self.range is not None:
            low, high = self.range
            source = ((source - low) / (high - low) * 2.0 - 1.0).clamp(-1.0, 1.0)
        low, high = float(source.min()), float(source.max())
        if low < -1.0 - SLACK or high > 1.0 + SLACK:
            raise DataError(
                f"source: values lie from {low:g} to {high:g}, and [-1, 1] is needed",
                hint=f"give the numbers that stand for -1 and 1: `range: [{low:g}, {high:g}]`",
            )
        return {"source": source.contiguous()}

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """The partner on the latent grid: its mean over each place, all its pixels there, or its latent."""
        source = canvas.extend(prepared["source"].float())
        if not self.latent and not self.factor:
            return Conditioning(concat=F.interpolate(source, canvas.grid, mode="area").to(canvas.dtype))
        if source.shape[-2:] != canvas.size:
            source = F.interpolate(source, canvas.size, mode="bilinear", antialias=True)
        concat = canvas.to_latent(source.to(canvas.dtype)) if self.latent else F.pixel_unshuffle(source, self.factor)
        return Conditioning(concat=concat.to(canvas.dtype))

    def null(self, canvas: Canvas) -> Conditioning:
        """Zeros."""
        return Conditioning(concat=canvas.zeros(1, self.emits.concat, *canvas.grid))

    def preview(self, prepared: Tensors) -> Image.Image:
        """The partner; of other channels than 1 and 3, the first."""
        source = prepared["source"] if self.channels in (1, 3) else prepared["source"][:1]
        pixels = ((source.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
