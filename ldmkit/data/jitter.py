"""Colours drawn anew for a view: what a few pictures lack. Geometry is `ldmkit.images.view`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from PIL import Image, ImageEnhance
from pydantic import Field
from torch import Generator

from ldmkit.errors import DataError
from ldmkit.plugins.ranges import Share


@dataclass(frozen=True)
class Jitter:
    """How far colours go from the photograph's, as torchvision's `ColorJitter` counts it.

    Args:
        brightness, contrast, saturation: in [0, 1]; the factor is uniform in [1 - x, 1 + x].
        hue: in [0, 0.5]; the turn of the colour circle is uniform in [-x, x], in whole turns: 0.5 makes any hue any other.

    Raises DataError for what is outside.
    """

    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0

    def __post_init__(self) -> None:
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0.0 <= (value := getattr(self, name)) <= most:
                raise DataError(f"jitter.{name} is {value}; it is at least 0 and at most {most:g}")

    def image(self, image: Image.Image, generator: Generator) -> Image.Image:
        """The picture ("L" or "RGB") in drawn colours. Grey pictures have no saturation and no hue."""
        # Four numbers whatever the options, so that switching one on moves no other.
        brightness, contrast, saturation, hue = (2 * torch.rand(4, generator=generator) - 1).tolist()
        if self.brightness:
            image = ImageEnhance.Brightness(image).enhance(1 + brightness * self.brightness)
        if self.contrast:
            image = ImageEnhance.Contrast(image).enhance(1 + contrast * self.contrast)
        if image.mode != "RGB":
            return image
        if self.saturation:
            image = ImageEnhance.Color(image).enhance(1 + saturation * self.saturation)
        return _turned(image, round(256 * hue * self.hue)) if self.hue else image


def _turned(image: Image.Image, turn: int) -> Image.Image:
    """All hues moved by `turn` in 256ths of the colour circle; grey stays grey."""
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + turn) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
