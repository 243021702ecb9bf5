"""`Dataset`: a source's samples as a model sees them: one size, in [-1, 1], everything aligned through the same draw."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ldmkit.data.images import to_ids, to_rgb8, to_tensor
from ldmkit.data.sample import BadSampleError, Field, Problem, Sample
from ldmkit.data.source import Crop, Source
from ldmkit.data.view import Size, View, draw_view, sizes_differ
from ldmkit.errors import DataError
from ldmkit.random import generator


class Dataset:
    """Samples of `source` cut to `size`.

    Args:
        size: (h, w) in pixels, or one number for both.
        channels: 1 or 3; default: what the source has.
        crop: where the window lies: "center" or "random".
        flip: mirror half of the views. Not for captions that say left and right.
        views: how many views each picture has; item i is view i % views of picture i // views, the same in every epoch, so that
            latents can be cached. None: a fresh view in every epoch.
        zoom: (low, high), picture pixels per view pixel, log-uniform; None: the largest window that fits.
        seed: of the views.
        aligned: fields that lie pixel on pixel with the image, besides all maps and boxes.

    A source's own `view_defaults` are not applied: ``Dataset(source, size=64, **source.view_defaults)`` does.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: int | Size,
        channels: int | None = None,
        crop: Crop = "center",
        flip: bool = False,
        views: int | None = 1,
        zoom: tuple[float, float] | None = None,
        seed: int = 0,
        aligned: frozenset[str] = frozenset(),
    ) -> None:
        self.source, self.info = source, source.info()
        self.size: Size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.channels = self.info.channels if channels is None else channels
        self.crop, self.flip, self.views, self.zoom = crop, flip, views, zoom
        self.seed = seed
        self.substituted: list[Problem] = []
        self._check()
        kinds = {name: field.kind for name, field in self.info.fields.items()}
        self._read = aligned  # what will be read for certain; a map that nobody asks for stays on the disk
        self.aligned = aligned | {name for name, kind in kinds.items() if kind in ("map", "boxes")}

    def _check(self) -> None:
        if self.info.count == 0:
            raise DataError("the source has not a single sample")
        if self.channels not in (1, 3):
            raise DataError(f"channels is {self.channels}; pictures have 1 (grey) or 3 (colour)")
        if min(self.size) < 1:
            raise DataError(f"size is {self.size[0]} x {self.size[1]}; both sides must be at least 1 pixel")
        if self.views is not None and self.views < 1:
            raise DataError(f"views is {self.views}; it must be at least 1, or null for a fresh view in every epoch")
        if self.zoom is not None and not 0 < self.zoom[0] <= self.zoom[1]:
            raise DataError(f"zoom is {list(self.zoom)}; it is [low, high] with 0 < low <= high")
        if self.crop not in ("center", "random"):
            raise DataError(f"crop is {self.crop!r}; it is center or random")

    @property
    def finite(self) -> bool:
        """Whether every epoch shows the same views of the same pictures, so that what is computed from them can be kept."""
        return self.count is not None and self.views is not None

    @property
    def count(self) -> int | None:
        """Items in an epoch; None = endless."""
        return None if self.info.count is None else self.info.count * (self.views or 1)

    def __len__(self) -> int:
        if self.count is None:
            raise TypeError("the source is endless and has no length; give it a count")
        return self.count

    @property
    def problems(self) -> list[Problem]:
        """What was passed over, by the source and while reading."""
        return [*self.source.problems, *self.substituted]

    def sample(self, item: int, epoch: int = 0) -> Sample:
        """Sample `item`, its fields as `Field` describes them; reading a picture that cannot be used is a `BadSampleError`."""
        index, key = self._place(item, epoch)
        return self._view(index, key)

    def readable(self, item: int, epoch: int = 0) -> Sample:
        """`sample`, with its picture read. Where that fails (a file changed since the scan) the next one stands in and
        `problems` says so; where none can be read, `DataError`."""
        index, key = self._place(item, epoch)
        tries = 1000 if self.info.count is None else self.info.count
        for _ in range(tries):
            sample = self._view(index, key)
            try:
                for name in ("image", *(self._read & set(sample))):
                    sample[name]
            except BadSampleError as error:
                self.report(Problem(error.path, error.reason))
                index = index + 1 if self.info.count is None else (index + 1) % self.info.count
            else:
                return sample
        raise DataError(
            f"none of the {tries} pictures can be read any more; the last one: {self.substituted[-1].path}: "
            f"{self.substituted[-1].reason}"
        )

    def report(self, problem: Problem) -> None:
        """Adds to `problems` what is not there yet (data workers find them in another process)."""
        if problem not in self.substituted:
            self.substituted.append(problem)

    def _place(self, item: int, epoch: int) -> tuple[int, tuple[str, int]]:
        """The index in the source, and the key of the view."""
        if item < 0 or (self.count is not None and item >= self.count):
            raise DataError(f"item {item} is outside [0, {self.count})")
        if self.views is not None:
            return item // self.views, ("view", item)
        return item, ("fresh-view", epoch * (self.count or 0) + item)

    def _view(self, index: int, key: tuple[str, int]) -> Sample:
        raw = self.source[index]
        if not isinstance(raw, Sample):
            raw = Sample(
                {name: partial(raw.__getitem__, name) for name in raw}, name=f"{type(self.source).__name__}[{index}]"
            )
        cut = _Cut(raw, self, key)
        loaders: dict[str, Callable[[], Any]] = {}
        for name in raw:
            if name == "image":
                loaders[name] = cut.picture
            elif name in self.aligned:
                loaders[name] = partial(cut.aligned, name, self.info.fields.get(name, Field("other")))
            else:
                loaders[name] = partial(_loose, raw, name)
        return Sample(loaders, name=raw.name, origins={name: raw.origin(name) for name in raw})


class _Cut:
    """One sample going through one view, drawn when the first field needs it."""

    def __init__(self, raw: Sample, dataset: Dataset, key: tuple[str, int]) -> None:
        self.raw, self.dataset, self.key = raw, dataset, key

    @cached_property
    def image(self) -> Image.Image:
        return _image(self.raw["image"])

    @cached_property
    def view(self) -> View:
        return draw_view(
            (self.image.height, self.image.width),
            self.dataset.size,
            crop=self.dataset.crop,
            flip=self.dataset.flip,
            zoom=self.dataset.zoom,
            generator=generator(self.dataset.seed, *self.key),
        )

    def picture(self) -> Tensor:
        return self.view.image(self.image, self.dataset.channels)

    def aligned(self, name: str, field: Field) -> Tensor | None:
        value = self.raw[name]
        if value is None:
            return None
        if field.kind == "boxes":
            return self.view.boxes(np.asarray(value, dtype=np.float32).reshape(-1, 5))
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

    def _check_size(self, name: str, other: Size) -> None:
        if other != self.view.picture:
            raise sizes_differ(self.view.picture, other, name, self.raw.origin("image"), self.raw.origin(name))


def _image(value: Any) -> Image.Image:
    """What a source gave for a picture, as "L" or "RGB"."""
    image = value if isinstance(value, Image.Image) else Image.fromarray(np.asarray(value))
    return image if image.mode in ("L", "RGB") and not image.has_transparency_data else to_rgb8(image)


def _loose(raw: Sample, name: str) -> Any:
    """A field that does not lie on the picture: a reference photograph becomes a tensor at its own size, the rest stays."""
    value = raw[name]
    return to_tensor(_image(value)) if isinstance(value, Image.Image) else value
