"""One sample going through one view: its picture and everything that lies on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldmkit.data.jitter import Jitter
from ldmkit.data.sample import Sample
from ldmkit.errors import DataError
from ldmkit.fields import Field
from ldmkit.images.pixels import to_ids, to_rgb8, to_tensor
from ldmkit.images.view import Crop, Resample, Size, View, draw_view, sizes_differ
from ldmkit.random import generator


@dataclass(frozen=True)
class CropSettings:
    """How pictures are cut; see `Dataset`."""

    channels: int
    crop: Crop
    flip: bool
    zoom: tuple[float, float] | None
    portion: tuple[float, float] | None
    resample: Resample
    jitter: Jitter | None = None


class CroppedSample:
    """One sample going through one view, drawn when the first field needs it; `key` is (purpose, position) of the draw."""

    def __init__(self, raw: Sample, cutting: CropSettings, size: Size, seed: int, key: tuple[str, int]) -> None:
        self.raw, self.cutting, self.size, self.seed, self.key = raw, cutting, size, seed, key

    @cached_property
    def image(self) -> Image.Image:
        return _image(self.raw["image"])

    @cached_property
    def view(self) -> View:
        return draw_view(
            (self.image.height, self.image.width),
            self.size,
            crop=self.cutting.crop,
            flip=self.cutting.flip,
            zoom=self.cutting.zoom,
            portion=self.cutting.portion,
            resample=self.cutting.resample,
            generator=generator(self.seed, *self.key),
        )

    def picture(self) -> Tensor:
        """The image cut by the view: float (c, h, w) in [-1, 1]."""
        return self.view.image(self.image, self.cutting.channels, self._coloured())

    def _coloured(self) -> Callable[[Image.Image], Image.Image] | None:
        if self.cutting.jitter is None:
            return None
        purpose, position = self.key
        return partial(self.cutting.jitter.image, generator=generator(self.seed, f"{purpose}/jitter", position))

    def aligned(self, name: str, field: Field) -> Tensor | None:
        """A field that lies pixel on pixel with the image, cut by the same view; None where the sample lacks it.

        Boxes become (n, 5), maps of integers (h, w), images and numbers float (c, h, w). Raises DataError for a field
        of another shape, or of another size than the image.
        """
        value = self.raw[name]
        if value is None:
            return None
        if field.kind == "boxes":
            return self.view.boxes(np.asarray(value, dtype=np.float32).reshape(-1, 5))
        if field.kind == "keypoints":
            return self.view.keypoints(np.asarray(value, dtype=np.float32).reshape(-1, 3), field.mirrored())
        if field.kind == "map":
            value = to_ids(value)
        if isinstance(value, Image.Image):
            self._check_size(name, (value.height, value.width))
            return self.view.image(_image(value))
        array = np.asarray(value)
        if array.ndim not in (2, 3):
            shape = " x ".join(map(str, array.shape)) or "a single number"
            raise DataError(
                f"the field {name!r} is aligned with the image, so it is (h, w) or (c, h, w); it is {shape}",
                where=self.raw.origin(name),
            )
        self._check_size(name, (array.shape[-2], array.shape[-1]))
        ids = array.ndim == 2 and (array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer))
        return self.view.ids(array) if ids else self.view.numbers(array)

    def loose(self, name: str, field: Field) -> Any:
        """A field that does not lie on the image.

        Another image becomes a tensor at its own size, of several captions one is drawn for the view, the rest stays.
        """
        value = self.raw[name]
        if isinstance(value, Image.Image):
            return to_tensor(_image(value))
        texts = isinstance(value, list) and field.kind != "words" and all(isinstance(text, str) for text in value)
        if texts and value:
            purpose, position = self.key
            drawn = torch.randint(len(value), (), generator=generator(self.seed, f"{purpose}/{name}", position))
            return value[int(drawn)]
        return value

    def _check_size(self, name: str, other: Size) -> None:
        if other != self.view.picture:
            raise sizes_differ(self.view.picture, other, name, self.raw.origin("image"), self.raw.origin(name))


def _image(value: Any) -> Image.Image:
    """What a source gave for a picture, as "L" or "RGB"."""
    image = value if isinstance(value, Image.Image) else Image.fromarray(np.asarray(value))
    return image if image.mode in ("L", "RGB") and not image.has_transparency_data else to_rgb8(image)
