"""A view: one geometric draw (crop, resize, flip) that a picture and everything lying on it go through together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from ldmkit.errors import DataError
from ldmkit.images.files import printable
from ldmkit.images.pixels import area_resized, to_tensor

Size = tuple[int, int]  # (h, w)
Crop = Literal["center", "random"]
Resample = Literal["bicubic", "area"]


@dataclass(frozen=True)
class View:
    """A window (left, top, right, bottom) in pixels of a picture of size `picture`, brought to `size`, then mirrored."""

    picture: Size
    window: tuple[float, float, float, float]
    size: Size
    flip: bool = False
    resample: Resample = "bicubic"

    def image(
        self,
        image: Image.Image,
        channels: int | None = None,
        coloured: Callable[[Image.Image], Image.Image] | None = None,
    ) -> Tensor:
        """A picture ("L" or "RGB") -> float (c, h, w) in [-1, 1], antialiased. `channels` 1 gives its luminance.

        `coloured` changes the colours of what was cut.
        """
        height, width = self.size
        if self.resample == "area":
            cut = area_resized(image, self.size, self.window)
        else:
            cut = image.resize((width, height), Image.Resampling.BICUBIC, box=self.window)
        if channels is not None:
            cut = cut.convert("L" if channels == 1 else "RGB")
        if coloured is not None:
            cut = coloured(cut)
        return to_tensor(self._mirrored(cut))

    def ids(self, ids: NDArray[Any]) -> Tensor:
        """Class ids (h, w) -> int64 (h, w), by nearest neighbour: no id appears that was not there."""
        left, top, right, bottom = self.window
        height, width = self.size
        rows = _centres(top, bottom, height, ids.shape[0])
        columns = _centres(left, right, width, ids.shape[1])
        cut = ids[rows[:, None], columns[None, :]]
        return torch.from_numpy((cut[:, ::-1] if self.flip else cut).astype(np.int64))

    def numbers(self, values: NDArray[Any]) -> Tensor:
        """Numbers (h, w) or (c, h, w) -> float (c, h, w), in their own range; antialiased bilinear, which never overshoots."""
        height, width = self.size
        planes = values[None] if values.ndim == 2 else values
        cut = [
            self._mirrored(
                Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32)).resize(
                    (width, height), Image.Resampling.BILINEAR, box=self.window
                )
            )
            for plane in planes
        ]
        return torch.from_numpy(np.stack([np.array(plane, dtype=np.float32) for plane in cut]))

    def boxes(self, boxes: NDArray[Any]) -> Tensor:
        """Boxes (n, 5), in fractions of the picture -> of the view; those outside are gone.

        A row is class, left, top, right, bottom.
        """
        if len(boxes) == 0:
            return torch.zeros(0, 5)
        height, width = self.picture
        left, top, right, bottom = self.window
        out = torch.as_tensor(np.asarray(boxes), dtype=torch.float32).clone()
        out[:, 1::2] = ((out[:, 1::2] * width - left) / (right - left)).clamp(0, 1)
        out[:, 2::2] = ((out[:, 2::2] * height - top) / (bottom - top)).clamp(0, 1)
        if self.flip:
            out[:, [1, 3]] = 1 - out[:, [3, 1]]
        return out[(out[:, 3] > out[:, 1]) & (out[:, 4] > out[:, 2])]

    def keypoints(self, points: NDArray[Any], mirrored: Sequence[int] | None = None) -> Tensor:
        """Rows (point, x, y) in fractions of the picture -> the same of the view; those outside are gone.

        `mirrored` gives each point's id in a mirrored view: a left eye is a right one there.
        """
        if len(points) == 0:
            return torch.zeros(0, 3)
        height, width = self.picture
        left, top, right, bottom = self.window
        out = torch.as_tensor(np.asarray(points), dtype=torch.float32).clone()
        out[:, 1] = (out[:, 1] * width - left) / (right - left)
        out[:, 2] = (out[:, 2] * height - top) / (bottom - top)
        if self.flip:
            out[:, 1] = 1 - out[:, 1]
            if mirrored is not None:
                out[:, 0] = torch.tensor(mirrored, dtype=torch.float32)[out[:, 0].long()]
        return out[((out[:, 1:] >= 0) & (out[:, 1:] <= 1)).all(1)]

    def _mirrored(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else image


def _centres(start: float, stop: float, count: int, limit: int) -> NDArray[np.intp]:
    """The source pixel below the centre of each of `count` target pixels."""
    centres = start + (np.arange(count) + 0.5) * (stop - start) / count
    return np.clip(np.floor(centres), 0, limit - 1).astype(np.intp)


def draw_view(
    picture: Size,
    size: Size,
    *,
    crop: Crop = "center",
    flip: bool = False,
    zoom: tuple[float, float] | None = None,
    portion: tuple[float, float] | None = None,
    resample: Resample = "bicubic",
    generator: Generator | None = None,
) -> View:
    """A window of the picture with the aspect of `size`; with neither `zoom` nor `portion`, the largest that fits.

    `zoom` (low, high) is its scale in picture pixels per view pixel, log-uniform between the two and never more than fits.
    `portion` (low, high) is its shorter side as a portion of the largest window's, uniform between the two, in whole pixels: the
    `min_crop_f` and `max_crop_f` of the paper's super-resolution data (0.5 and 1). A picture smaller than `size` is enlarged.
    Without a generator: the centre, `low`, not mirrored. Raises DataError for a side below 1 pixel.
    """
    if min(picture) < 1 or min(size) < 1:
        raise DataError(f"a view of {size[0]} x {size[1]} pixels cannot be cut from {picture[0]} x {picture[1]}")
    largest = min(picture[0] / size[0], picture[1] / size[1])
    # Four numbers whatever the options, so that switching one on moves no other.
    draws = [0.0, 0.5, 0.5, 1.0] if generator is None else torch.rand(4, generator=generator).tolist()
    if portion is not None:
        low, high = portion
        side = math.floor(min(size) * largest * (low + draws[0] * (high - low)))
        scale = min(max(side, 1) / min(size), largest)
    elif zoom is None:
        scale = largest
    else:
        low, high = (min(bound, largest) for bound in zoom)
        scale = math.exp(math.log(low) + draws[0] * (math.log(high) - math.log(low)))
    height, width = min(size[0] * scale, picture[0]), min(size[1] * scale, picture[1])
    spare_rows, spare_columns = picture[0] - height, picture[1] - width
    if crop == "random":  # whole pixels: at scale 1 nothing is interpolated
        top, left = math.floor(draws[1] * (int(spare_rows) + 1)), math.floor(draws[2] * (int(spare_columns) + 1))
        top, left = min(top, int(spare_rows)), min(left, int(spare_columns))
    else:
        top, left = int(spare_rows / 2), int(spare_columns / 2)
    window = (float(left), float(top), left + width, top + height)
    return View(picture, window, size, flip=flip and draws[3] < 0.5, resample=resample)


def sizes_differ(picture: tuple[int, ...], other: tuple[int, ...], name: str, image_path: str, path: str) -> DataError:
    """The DataError for something that should lie pixel on pixel with its image and does not."""
    return DataError(
        f"the image is {picture[0]} x {picture[1]} pixels (h x w) and its {name} {other[0]} x {other[1]}; they must be equal\n"
        f"  image: {printable(image_path)}\n  {name}: {printable(path)}",
        hint="save both at the same size (and without an EXIF rotation in only one of them)",
    )
