"""Pictures in and out of a model: what a person gives to start from, and what they get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmkit.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


def to_pil(images: Tensor) -> list[Image]:
    """Images (b, c, h, w) in [-1, 1] as Pillow images: grey for one channel, else the first three as RGB."""
    from PIL import Image

    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(row[..., 0] if row.shape[2] < 3 else row[..., :3]) for row in pixels]


def rows(value: Any) -> int:
    """How many pictures, or masks, a person gave."""
    if isinstance(value, Tensor):
        return len(value) if value.ndim == 4 else 1
    return len(value) if isinstance(value, list | tuple) else 1


def read(value: Any, *, size: tuple[int, int], channels: int, count: int) -> Tensor:
    """Pictures (count, channels, h, w) in [-1, 1] of `size`.

    `value`: a tensor (b, c, h, w) or (c, h, w) of that size, in [-1, 1]; or a Pillow image, a path, or a list of them, which
    are made just large enough and cut in the middle. One picture serves all rows.
    Raises UsageError for another number of them, another size or channels; DataError for a file that cannot be read.
    """
    found = _stacked(value, lambda one: _from_pil(one, size, channels))
    return _checked(found, "pictures", (channels, *size), count)


def read_mask(value: Any, *, size: tuple[int, int], count: int) -> Tensor:
    """Masks (count, 1, h, w) in [0, 1]: 1 (white) keeps the picture, 0 (black) is painted anew.

    `value`: a tensor (b, 1, h, w), (1, h, w) or (h, w); or a Pillow image, a path, or a list of them, cut as the picture is.
    Raises as `read`, and UsageError for values outside [0, 1].
    """
    value = value[None] if isinstance(value, Tensor) and value.ndim == 2 else value
    if isinstance(value, Tensor):
        found = _checked(_stacked(value, None), "masks", (1, *size), count)
    else:
        found = _checked(_stacked(value, lambda one: (_from_pil(one, size, 1) + 1) / 2), "masks", (1, *size), count)
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise UsageError(
            f"a mask from {float(found.min()):g} to {float(found.max()):g}: it lies in [0, 1], 1 keeps and 0 paints anew"
        )
    return found


def on_grid(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """A mask (b, 1, h, w) on the latent grid: a latent pixel is kept as far as every pixel it stands for is kept."""
    return 1 - F.adaptive_max_pool2d(1 - mask, grid)


def _stacked(value: Any, convert: Callable[[Any], Tensor] | None) -> Tensor:
    if isinstance(value, Tensor):
        return value.float() if value.ndim == 4 else value.float()[None]
    assert convert is not None
    given: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    if not given:
        raise UsageError("no picture was given")
    return torch.stack([convert(one) for one in given])


def _checked(found: Tensor, what: str, shape: tuple[int, ...], count: int) -> Tensor:
    if found.shape[1:] != shape or len(found) not in (1, count):
        raise UsageError(
            f"{what} of shape {tuple(found.shape)}; here they are ({count}, {', '.join(map(str, shape))}), or 1 for all",
            hint="give another `size`, or as many as are sampled",
        )
    return found.expand(count, *shape)


def _from_array(value: np.ndarray) -> Image:
    """A numpy array as people have pictures: (h, w) or (h, w, c), uint8, or bool for a mask."""
    from PIL import Image

    pixels = value.astype("uint8") * 255 if value.dtype.kind == "b" else value
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if pixels.dtype.name != "uint8" or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise UsageError(
            f"a picture as a numpy array {value.shape} of {value.dtype}: it is (h, w), (h, w, 3) or (h, w, 4) of uint8 in "
            "0..255, or of bool for a mask",
            hint="give other numbers as a tensor (c, h, w) in [-1, 1], a mask as one in [0, 1]",
        )
    return Image.fromarray(pixels)


def _from_pil(value: Any, size: tuple[int, int], channels: int) -> Tensor:
    """(channels, h, w) in [-1, 1]."""
    import numpy as np
    from PIL import Image, ImageOps

    if channels not in (1, 3):
        raise UsageError(f"a picture file has 1 or 3 channels, and this model's have {channels}: give a tensor")
    if isinstance(value, str | Path):
        try:
            with Image.open(Path(value).expanduser()) as opened:
                value = ImageOps.exif_transpose(opened)
        except OSError as error:
            raise DataError(f"the picture {value} cannot be read: {error}") from error
    if isinstance(value, np.ndarray):
        value = _from_array(value)
    if not isinstance(value, Image.Image):
        raise UsageError(
            f"a picture is a tensor, a numpy array, a Pillow image or a path, and this is a {type(value).__name__}"
        )
    height, width = size
    cut = ImageOps.fit(value.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(cut, dtype=np.float32)).reshape(height, width, channels)
    return pixels.permute(2, 0, 1) / 127.5 - 1
