"""Pillow images -> what a network reads. One function for every mode a file can have."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ldmkit.errors import DataError
from ldmkit.fields import Color
from ldmkit.images.colours import to_srgb

SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
WHITE: Color = (255, 255, 255)


def to_tensor(image: Image.Image) -> Tensor:
    """An "L" or "RGB" image -> float (c, h, w) in [-1, 1]."""
    pixels = np.array(image, dtype=np.float32)
    pixels = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return torch.from_numpy(pixels / 127.5 - 1.0)


def area_resized(image: Image.Image, size: tuple[int, int], window: tuple[float, float, float, float]) -> Image.Image:
    """The `window` (left, top, right, bottom) of an "L" or "RGB" image at `size` (h, w): each pixel is the mean over the area it
    covers, parts of pixels by their share (OpenCV's INTER_AREA, as the paper's super-resolution data). Enlarged, it is bilinear.
    """
    left, top, right, bottom = window
    if right - left < size[1] or bottom - top < size[0]:
        return image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=window)
    first_row, first_column = math.floor(top), math.floor(left)
    pixels = np.asarray(image)[first_row : math.ceil(bottom), first_column : math.ceil(right)].astype(np.float32)
    rows = _shares(top - first_row, bottom - first_row, size[0], pixels.shape[0])
    columns = _shares(left - first_column, right - first_column, size[1], pixels.shape[1])
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    cut = np.stack([rows @ planes[..., channel] @ columns.T for channel in range(planes.shape[2])], axis=-1)
    return Image.fromarray(np.clip(np.round(cut), 0, 255).astype(np.uint8).squeeze(-1 if pixels.ndim == 2 else ()))


def _shares(start: float, stop: float, count: int, limit: int) -> NDArray[np.float32]:
    """(count, limit): how much of each of `count` equal parts of [start, stop] lies in each of `limit` pixels."""
    edges = start + np.arange(count + 1) * (stop - start) / count
    pixels = np.arange(limit)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shares: NDArray[np.float32] = (np.clip(overlap, 0, None) * (count / (stop - start))).astype(np.float32)
    return shares


def upright(image: Image.Image) -> Image.Image:
    """A copy of the image, turned as its EXIF orientation says; as it is where the EXIF block is broken."""
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, struct.error):
        return image.copy()


def to_rgb8(
    image: Image.Image, *, background: Color = WHITE, value_range: tuple[float, float] | None = None
) -> Image.Image:
    """An image of any mode as 8-bit "RGB", in sRGB: an embedded colour profile is followed.

    16-bit greys are scaled (x / 257, or by `value_range`), not clipped as `convert` does. Transparency is laid over `background`.
    32-bit integers and floats have no range of their own: `value_range` (black, white) says it, and without it they are a
    `DataError`.
    """
    if image.mode in SIXTEEN_BIT or (image.mode == "I" and image.format == "PNG"):
        low, high = value_range or (0.0, 65535.0)
        return _scaled(np.asarray(image), low, high)
    if image.mode in ("I", "F"):
        if value_range is None:
            raise DataError(
                f"the pixels are {'32-bit integers' if image.mode == 'I' else 'floats'}, without a range of their own",
                hint="give the range, for example value_range: [0.0, 1.0]",
            )
        return _scaled(np.asarray(image), *value_range)
    image = to_srgb(image)
    if image.has_transparency_data:
        return _over(image, background)
    return image if image.mode == "RGB" else image.convert("RGB")


def to_pixels(
    image: Image.Image,
    channels: int = 3,
    *,
    background: Color = WHITE,
    value_range: tuple[float, float] | None = None,
) -> Image.Image:
    """`to_rgb8`, or its luminance ("L") for one channel."""
    rgb = to_rgb8(image, background=background, value_range=value_range)
    return rgb.convert("L") if channels == 1 else rgb


def _scaled(values: NDArray[Any], low: float, high: float) -> Image.Image:
    finite = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    grey = np.clip(np.round((finite - low) * (255.0 / (high - low))), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _over(image: Image.Image, background: Color) -> Image.Image:
    """Composited by hand: pasting by `convert` would show the colours hidden under transparent pixels."""
    if image.mode == "La":
        image = image.convert("LA")
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*background, 255)), picture).convert("RGB")


def to_ids(value: Any) -> NDArray[Any]:
    """A label map, as PIL image or array -> its ids, an integer array (h, w). The ids of a palette image are its indices.

    Raises `DataError` for a picture in colours: those need a table of colours.
    """
    if isinstance(value, Image.Image) and value.mode not in ("1", "L", "P", "I", *SIXTEEN_BIT):
        raise DataError(f"a label map holds one class id a pixel; this one is a picture of mode {value.mode}")
    ids = np.asarray(value.convert("L").point(lambda v: v // 255) if _is_bilevel(value) else value)
    if ids.dtype == np.bool_:
        ids = ids.astype(np.uint8)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"a label map is (h, w) integers; this one is {'x'.join(map(str, ids.shape))} of {ids.dtype}")
    return ids


def _is_bilevel(value: Any) -> bool:
    return isinstance(value, Image.Image) and value.mode == "1"
