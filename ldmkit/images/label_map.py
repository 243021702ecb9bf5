"""Label maps as files paint them -> class ids, by what the source knows of its own: colours, numbers, unlabelled pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldmkit.errors import LdmkitError
from ldmkit.fields import Color, Field
from ldmkit.images.files import BadSampleError, Limits, printable, read_ids
from ldmkit.images.pixels import to_ids

IGNORED = 255  # the id that means unlabelled


def ids_of(value: Any, field: Field, error: type[LdmkitError], where: str | None = None) -> NDArray[np.integer[Any]]:
    """A label map as class ids (h, w); a pixel without a class holds `field.ignore`, or 255.

    `value`: a path, a Pillow image, or an integer array or tensor: ids as they are, (1, h, w) too, or colours (h, w, 3).
    Colours are looked up in `field.palette`, other numbers in `field.values`.

    Raises:
        error: a colour or a number that stands for no class, a map that was saved with loss, or what is no map at all.
    """
    if isinstance(value, str | Path):
        value, where = _opened(Path(value).expanduser(), error)
    if isinstance(value, Image.Image):
        return _from_image(value, field, error, where)
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        return by_colour(array, field, error, where)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        given = f"{array.dtype} of shape {array.shape}"
        raise error(f"a label map is (h, w) class numbers or (h, w, 3) colours in uint8; given: {given}", where=where)
    return array


def _opened(path: Path, error: type[LdmkitError]) -> tuple[Image.Image, str]:
    where = printable(str(path))
    try:
        return read_ids(str(path), Limits()), where
    except BadSampleError as bad:
        raise error(f"the label map cannot be read: {bad.reason}", where=where) from bad


def _from_image(
    image: Image.Image, field: Field, error: type[LdmkitError], where: str | None
) -> NDArray[np.integer[Any]]:
    if field.palette is not None and image.mode not in ("1", "L", "I", "I;16", "P"):
        return by_colour(np.asarray(image.convert("RGB")), field, error, where)
    if image.mode in ("RGB", "RGBA") and grey(image) is not None:
        image = image.getchannel(0)
    try:
        ids = to_ids(image)
    except LdmkitError as bad:
        raise error(f"{bad.message}{found_colours(image)}", hint=palette_line([image]), where=where) from bad
    return by_value(ids, field, error, where)


def grey(image: Image.Image) -> Image.Image | None:
    """The one channel of an image in colours whose red, green and blue are equal everywhere; None for any other."""
    red, green, blue = image.split()[:3]
    same = np.array_equal(np.asarray(red), np.asarray(green)) and np.array_equal(np.asarray(red), np.asarray(blue))
    return red if same else None


def by_colour(
    pixels: NDArray[np.uint8], field: Field, error: type[LdmkitError], where: str | None = None
) -> NDArray[np.integer[Any]]:
    """Colours (h, w, 3) -> ids, by the palette. Black means unlabelled where there is an `ignore` and no black class."""
    if field.palette is None:
        raise error(
            "the label map is in colours, and nobody said which class each is",
            hint=palette_line([Image.fromarray(pixels)]),
            where=where,
        )
    known = {_packed(color): index for index, color in reversed(list(enumerate(field.palette)))}
    if field.ignore is not None:
        known.setdefault(0, field.ignore)
    codes = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    found, inverse = np.unique(codes, return_inverse=True)
    if strangers := [int(code) for code in found if int(code) not in known]:
        row, column = np.argwhere(codes == strangers[0])[0]
        raise error(
            f"the colour {_unpacked(strangers[0])} at row {row}, column {column} is not in map_colors "
            f"({int(np.isin(codes, strangers).sum())} such pixels)",
            hint="add it, or save the map without smoothing and not as JPEG",
            where=where,
        )
    ids: NDArray[np.int64] = np.array([known[int(code)] for code in found])[inverse].reshape(codes.shape)
    return ids


def by_value(
    ids: NDArray[np.integer[Any]], field: Field, error: type[LdmkitError], where: str | None = None
) -> NDArray[np.integer[Any]]:
    """Numbers (h, w) that stand for classes by `field.values` -> ids (h, w); without such values, as they are.

    Raises `error` naming the first number that stands for no class.
    """
    if field.values is None:
        return ids
    out = np.full(ids.shape, -1, dtype=np.int64)
    for index, value in enumerate(field.values):
        out[ids == value] = index
    if field.ignore is not None:
        out[ids == field.ignore] = field.ignore
    wrong = ids[out < 0]
    if wrong.size:
        values = ", ".join(map(str, field.values))
        raise error(
            f"the map holds the number {int(wrong.flat[0])} ({wrong.size} pixels); its classes are painted {values}",
            hint="fix the map, or name all numbers: data.map_values",
            where=where,
        )
    return out


def found_colours(image: Image.Image) -> str:
    """How many colours an image has, and its first pixel, for messages."""
    colours = image.convert("RGB").getcolors(maxcolors=2**24)
    first = image.convert("RGB").getpixel((0, 0))
    return f"; its first pixel is {first}, and it has {len(colours or ())} colours"


def palette_line(images: Sequence[Image.Image], most: int = 64) -> str:
    """The line of a recipe that names the colours of some maps, if they are few enough to be classes."""
    colours: set[Color] = set()
    for image in images:
        found = image.convert("RGB").getcolors(maxcolors=2**24) or []
        colours.update((int(c[0]), int(c[1]), int(c[2])) for _, c in found if isinstance(c, tuple))
        if len(colours) > most:
            return "more colours than classes: a photograph, or a map that was smoothed or saved with loss"
    listed = ", ".join(f"[{r}, {g}, {b}]" for r, g, b in sorted(colours))
    return f"for maps painted in colours name them, one a class: data.map_colors: [{listed}]"


def _packed(color: Sequence[int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _unpacked(code: int) -> Color:
    return code >> 16, code >> 8 & 255, code & 255
