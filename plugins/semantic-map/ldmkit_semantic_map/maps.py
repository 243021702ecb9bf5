"""Label maps as people and data sets have them -> class numbers."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ldmkit.errors import LdmkitError

Palette = Sequence[Sequence[int]]  # one (red, green, blue) a class, 0 to 255


def read_ids(value: Any, palette: Palette | None, ignore: int | None, error: type[LdmkitError]) -> Tensor:
    """A label map -> class numbers (h, w) int64, not yet checked against a range.

    `value` is a path, a picture (indexed or grey: its numbers; RGB: by `palette`), or an integer array or tensor (h, w),
    (1, h, w), or (h, w, 3) of colours. A colour that is not in the palette is an error, black where there is an `ignore` label
    excepted. Raises `error`.
    """
    pixels = _pixels(value, error)
    if pixels.ndim == 3 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim == 2:
        return torch.from_numpy(pixels.astype(np.int64))
    if pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size:
        return _by_colour(pixels, palette, ignore, error)
    raise error(f"a label map is (h, w) numbers or (h, w, 3) colours; given: {tuple(pixels.shape)}")


def _pixels(value: Any, error: type[LdmkitError]) -> NDArray[Any]:
    if isinstance(value, str | Path):
        value = _open(Path(value).expanduser(), error)
    if isinstance(value, Image.Image):
        # "P", "L" and "I" hold the numbers themselves; converting an indexed picture would lose them
        return np.array(value if value.mode in ("P", "L", "I", "I;16") else value.convert("RGB"))
    pixels = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
    if not np.issubdtype(pixels.dtype, np.integer):
        raise error(
            f"a label map holds whole numbers; given: {pixels.dtype}", hint="convert it, for example with .astype(int)"
        )
    return pixels


def _open(path: Path, error: type[LdmkitError]) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (FileNotFoundError, IsADirectoryError) as cause:
        raise error(f"there is no label map at {path}") from cause
    except UnidentifiedImageError as cause:
        raise error(f"{path} is no picture") from cause


def _by_colour(pixels: NDArray[Any], palette: Palette | None, ignore: int | None, error: type[LdmkitError]) -> Tensor:
    if palette is None:
        raise error("the label map is in colours, and no `palette` says which class each is", hint="give `palette`")
    codes = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    known = {red << 16 | green << 8 | blue: index for index, (red, green, blue) in reversed(list(enumerate(palette)))}
    if ignore is not None:
        known.setdefault(0, ignore)
    found, inverse = np.unique(codes, return_inverse=True)
    if strangers := [int(code) for code in found if int(code) not in known]:
        rgb = (strangers[0] >> 16, strangers[0] >> 8 & 255, strangers[0] & 255)
        count = int((codes == strangers[0]).sum())
        raise error(
            f"the colour {rgb} is not among the {len(palette)} of `palette`; {count} pixels of the label map have it",
            hint="a map that was resized smoothly, or saved as JPEG, has colours that are no class",
        )
    table = np.array([known[int(code)] for code in found])
    return torch.from_numpy(table[inverse].reshape(codes.shape))


def check_range(ids: Tensor, classes: int, ignore: int | None, error: type[LdmkitError]) -> None:
    """Raises `error` for ids (any shape) that are no class: the first, in how many pixels, and what is allowed."""
    wrong = (ids < 0) | (ids >= classes)
    if ignore is not None:
        wrong &= ids != ignore
    if not bool(wrong.any()):
        return
    first = int(ids[wrong][0])
    allowed = f"0 to {classes - 1}" + (f", and {ignore} to ignore" if ignore is not None else "")
    raise error(
        f"the label map has the class {first} in {int((ids == first).sum())} pixels; allowed are {allowed}",
        hint=None if ignore is not None else f"if {first} means no class, set `ignore: {first}`",
    )


def paint(ids: Tensor, palette: Palette, ignore: int | None) -> Image.Image:
    """Class numbers (h, w) as a picture; ignored pixels are black."""
    colours = np.zeros((max(len(palette), int(ids.max()) + 1), 3), dtype=np.uint8)
    colours[: len(palette)] = np.array(palette, dtype=np.uint8)
    pixels = colours[ids.clamp(min=0).numpy()]
    if ignore is not None:
        pixels[(ids == ignore).numpy()] = 0
    return Image.fromarray(pixels)


def distinct_colours(count: int) -> list[tuple[int, int, int]]:
    """Colours for classes without a palette: hues a golden angle apart, so that neighbours in number differ."""
    hsv = [(index * 0.618034 % 1.0, 0.65 + 0.35 * (index % 2), 1.0 - 0.3 * (index // 2 % 2)) for index in range(count)]
    return [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(*colour)) for colour in hsv]  # type: ignore[misc]
