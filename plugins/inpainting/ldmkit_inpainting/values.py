"""What a person gives to be painted anew: an image and a mask, from files, mappings, arrays or tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmkit.data import Field
from ldmkit.errors import LdmkitError, UsageError
from ldmkit.images import image_of, image_tensor, read_field

HINT = 'give inpainting=photo.png,mask.png, or {"image": ..., "mask": ...}; white of the mask is painted anew'
Size = tuple[int, int]


def pair(value: Any) -> tuple[Any, Any]:
    """The image and the mask in a value: "image,mask", JSON, a mapping of `image` and `mask`, or two of them in this order."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UsageError(f"{value!r:.80} is no JSON: {error}", hint=HINT) from error
    if isinstance(value, str):
        value = _split(value)
    if isinstance(value, Mapping):
        if set(value) != {"image", "mask"}:
            raise UsageError(
                f"an image and a mask are needed; given: {', '.join(map(str, value)) or 'nothing'}", hint=HINT
            )
        value = (value["image"], value["mask"])
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        count = f" of {len(value)}" if isinstance(value, Sequence) and not isinstance(value, str) else ""
        raise UsageError(f"an image and a mask are needed; given: {type(value).__name__}{count}", hint=HINT)
    return value[0], value[1]


def _split(text: str) -> tuple[str, str]:
    """ "photo.png,mask.png" in two, at the comma that leaves two files, where a name holds commas itself."""
    cuts = [index for index, letter in enumerate(text) if letter == ","]
    if not cuts:
        raise UsageError(f"{text!r} names one file; an image and a mask are needed", hint=HINT)
    parts = [(text[:cut].strip(), text[cut + 1 :].strip()) for cut in cuts]
    return next((both for both in parts if all(Path(one).expanduser().is_file() for one in both)), parts[-1])


def read(value: Any, known: Field, size: Size) -> tuple[Tensor, Tensor]:
    """The image (c, h, w) in [-1, 1] and the mask (h, w), bool, both of `size`: cut to its shape in the middle, and resized.

    Tensors have that size already. Raises UsageError for a file that is none, sizes that differ, and numbers out of range.
    """
    image, mask = pair(value)
    if isinstance(image, Tensor) or isinstance(mask, Tensor):
        return _tensors(image, mask, known, size)
    opened = image_of(image, known, known.channels or 3)
    ids = (np.asarray(_grey(mask)) > 127).astype(np.uint8)
    if ids.shape != (opened.height, opened.width):
        raise UsageError(
            f"the image is {opened.height} x {opened.width} pixels (h x w) and its mask {ids.shape[0]} x {ids.shape[1]}",
            hint="save both at the same size",
        )
    found = read_field(opened, known, size, aligned=True)
    return found, read_field(ids, Field("map", classes=2), size).bool()


def _grey(mask: Any) -> Any:
    """A mask as a grey image; where it holds 0 and 1 alone, 1 is white."""
    try:
        opened = image_of(mask, channels=1)
    except LdmkitError as error:
        raise UsageError(f"the mask: {str(error).splitlines()[0]}", hint=HINT) from error
    return opened.point(lambda level: 255 * level) if opened.getextrema()[1] == 1 else opened


def _tensors(image: Any, mask: Any, known: Field, size: Size) -> tuple[Tensor, Tensor]:
    found = image_tensor(image) if isinstance(image, Tensor) else read_field(image, known, size, aligned=True)
    if not isinstance(mask, Tensor):
        mask = torch.from_numpy(np.array(_grey(mask)) > 127)
    painted = as_mask(mask.float() / 255 if mask.dtype == torch.uint8 and int(mask.max()) > 1 else mask, UsageError)
    for what, sides in (("image", tuple(found.shape[-2:])), ("mask", tuple(painted.shape))):
        if sides != size:
            raise UsageError(
                f"the {what} is a tensor of {sides[0]} x {sides[1]} (h x w), and images of {size[0]} x {size[1]} are made",
                hint="give another `size`, or files, which are cut and resized",
            )
    return found, painted


def as_mask(values: Any, error: type[LdmkitError], low: float = 0.0) -> Tensor:
    """Numbers (h, w) or (1, h, w) from `low` to 1, or whole numbers, as a mask (h, w), bool: the upper half is True.

    Raises `error` for other shapes, numbers out of range, and NaN.
    """
    mask = torch.as_tensor(values)
    mask = mask[0] if mask.ndim == 3 and mask.shape[0] == 1 else mask
    if mask.ndim != 2:
        raise error(f"the mask is (h, w) or (1, h, w); given: {tuple(mask.shape)}", hint="save it as a grey image")
    if not mask.is_floating_point():
        return mask != 0
    if not bool(((mask >= low - 0.001) & (mask <= 1.001)).all()):
        raise error(
            f"the mask holds numbers from {float(mask.min()):g} to {float(mask.max()):g}; they lie in [{low:g}, 1]",
            hint="1 (white) is painted anew",
        )
    return mask > (low + 1) / 2
