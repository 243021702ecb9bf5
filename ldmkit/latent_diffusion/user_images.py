"""Pictures in and out of a model: what a person gives to start from, and what they get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmkit.errors import UsageError
from ldmkit.images import image_of
from ldmkit.images.view import draw_view

if TYPE_CHECKING:
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
    Raises UsageError for another number of them, another size or channels; or a file that cannot be read.
    """
    found = _stacked(value, lambda one: _from_pil(one, size, channels))
    found = _checked(found, "pictures", (channels, *size), count)
    if float(found.min()) < -1.001 or float(found.max()) > 1.001:
        raise UsageError(
            f"a tensor from {float(found.min()):g} to {float(found.max()):g}: images lie in [-1, 1]",
            hint="0 to 255 becomes x / 127.5 - 1",
        )
    return found


def read_mask(value: Any, *, size: tuple[int, int], count: int) -> Tensor:
    """Masks (count, 1, h, w) in [0, 1]: 1 (white) is painted anew, 0 (black) keeps the image, as everywhere else.

    `value`: a tensor (b, 1, h, w), (1, h, w) or (h, w); or a Pillow image, a path, or a list of them, cut as the image is. A file
    that holds 0 and 1 alone holds a mask: 1 is white.
    Raises as `read`, and UsageError for values outside [0, 1].
    """
    value = value[None] if isinstance(value, Tensor) and value.ndim == 2 else value
    convert = None if isinstance(value, Tensor) else lambda one: _mask_of(one, size)
    found = _checked(_stacked(value, convert), "masks", (1, *size), count)
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise UsageError(
            f"a mask from {float(found.min()):g} to {float(found.max()):g}: it lies in [0, 1], 1 paints anew and 0 keeps"
        )
    return found


def kept(mask: Any, keep: Any, *, size: tuple[int, int], count: int) -> Tensor | None:
    """Where an image is kept (count, 1, h, w), 1 is all of it: the reverse of `mask`, or `keep` as it is; None without either.

    Raises UsageError for both.
    """
    if mask is not None and keep is not None:
        raise UsageError(
            "mask and keep both say what is painted anew", hint="give one of them: mask's white is painted"
        )
    if keep is not None:
        return read_mask(keep, size=size, count=count)
    return None if mask is None else 1 - read_mask(mask, size=size, count=count)


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


def _from_pil(value: Any, size: tuple[int, int], channels: int) -> Tensor:
    """(channels, h, w) in [-1, 1], cut in the middle as a `Dataset` cuts."""
    if channels not in (1, 3):
        raise UsageError(f"an image file has 1 or 3 channels, and this model's have {channels}: give a tensor")
    image = image_of(value, channels=channels)
    return draw_view((image.height, image.width), size).image(image)


def _mask_of(value: Any, size: tuple[int, int]) -> Tensor:
    """(1, h, w) in [0, 1]."""
    image = image_of(value, channels=1)
    if image.getextrema()[1] == 1:
        image = image.point(lambda level: 255 * level)
    return (_from_pil(image, size, 1) + 1) / 2
