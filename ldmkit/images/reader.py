"""One reader: what a person gives for a field -> what a `Dataset`'s sample holds, read as the data source reads its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldmkit.errors import UsageError
from ldmkit.fields import Field
from ldmkit.images import files
from ldmkit.images.label_map import ids_of
from ldmkit.images.pixels import WHITE, to_pixels, to_tensor, upright
from ldmkit.images.view import Size, draw_view
from ldmkit.messages import nearest

UNKNOWN = Field("other")


def read_field(value: Any, field: Field = UNKNOWN, size: Size | None = None, *, aligned: bool = False) -> Any:
    """The value of a field as a `Dataset`'s sample holds it (see `Field`).

    Args:
        value: a path, text, JSON text, a number, a Pillow image, an array or a tensor, as the field's kind allows.
        field: what the source knows of it; by default nothing, and files are told by their content.
        size: (h, w) in pixels of the image to be made. What lies on it (maps, and images where `aligned`) is cut to its shape in
            the middle and brought to its size.

    Raises:
        UsageError: the value is none of the field's kind, or a file that cannot be read as one.
    """
    if field.kind == "image":
        return _image(value, field, size if aligned or field.aligned else None)
    if field.kind == "map":
        return _map(value, field, size)
    if field.kind == "label":
        return label(value, field)
    if field.kind == "number":
        return _number(value)
    if field.kind == "text":
        return f"{value:g}" if isinstance(value, int | float) else value
    return _other(value, field, size if aligned else None)


def open_image(value: str | Path, field: Field = UNKNOWN, channels: int = 3) -> Image.Image:
    """An image file as the source reads its own: upright, in sRGB, over its background, by its range. Raises `UsageError`."""
    path = Path(value).expanduser()
    limits = files.Limits(background=field.background or WHITE, value_range=field.range)
    try:
        return files.read(str(path), limits, channels=channels)
    except files.BadSampleError as error:
        raise UsageError(f"the image cannot be read: {error.reason}", where=files.printable(str(path))) from error


def image_of(value: Any, field: Field = UNKNOWN, channels: int = 3) -> Image.Image:
    """A path, a Pillow image, or a uint8 or uint16 array (h, w) or (h, w, c) -> an 8-bit "L" or "RGB" image.

    A file is read as by `open_image`. Raises UsageError for anything else.
    """
    if isinstance(value, str | Path):
        return open_image(value, field, channels)
    if isinstance(value, np.ndarray):
        value = _from_array(value)
    if not isinstance(value, Image.Image):
        raise UsageError(f"an image is a path, a Pillow image, an array or a tensor, not {type(value).__name__}")
    return to_pixels(upright(value), channels, background=field.background or WHITE, value_range=field.range)


def _from_array(array: NDArray[Any]) -> Image.Image:
    flat = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    grey = flat.ndim == 2 and flat.dtype in (np.uint8, np.uint16, np.bool_)
    if not grey and not (flat.ndim == 3 and flat.shape[2] in (3, 4) and flat.dtype == np.uint8):
        raise UsageError(
            f"an array is (h, w) or (h, w, c) of uint8; given: {array.dtype} of shape {array.shape}",
            hint="floats are tensors (c, h, w) in [-1, 1]",
        )
    return Image.fromarray(flat)


def image_tensor(value: Tensor, channels: int | None = None) -> Tensor:
    """A tensor (c, h, w) or (b, c, h, w) that holds images -> float in [-1, 1]: uint8 is scaled, floats are checked.

    Raises `UsageError` for another number of channels or values outside the range: 0 to 255 in floats would be all white.
    """
    if value.ndim not in (3, 4) or not value.numel() or (channels is not None and value.shape[-3] != channels):
        raise UsageError(f"a tensor holds ({channels or 'c'}, h, w); given: {tuple(value.shape)}")
    if value.dtype == torch.uint8:
        return value.float() / 127.5 - 1.0
    low, high = value.min().item(), value.max().item()
    if not value.is_floating_point() or not (low >= -1.001 and high <= 1.001):
        raise UsageError(
            f"a float tensor holds values in [-1, 1], a uint8 one 0 to 255; given: {value.dtype} from {low:g} to {high:g}"
        )
    return value.float()


def _image(value: Any, field: Field, size: Size | None) -> Tensor:
    if isinstance(value, Tensor):
        return image_tensor(value, field.channels)
    image = image_of(value, field, field.channels or 3)
    return to_tensor(image) if size is None else draw_view((image.height, image.width), size).image(image)


def _map(value: Any, field: Field, size: Size | None) -> Tensor:
    ids = ids_of(value, field, UsageError)
    return torch.from_numpy(ids.astype(np.int64)) if size is None else draw_view(ids.shape, size).ids(ids)


def label(value: Any, field: Field) -> int:
    """The id of a class by its name, its number, or its number in digits (a name of that spelling goes first).

    Raises UsageError, with the nearest name, for what is no class.
    """
    names = field.names or ()
    if isinstance(value, str) and value in names:
        return names.index(value)
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < (field.classes or value + 1):
        return value
    near = nearest(str(value), names)
    known = f"; the classes are {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}" if names else ""
    raise UsageError(
        f"{value!r} is no class: give {'a name, or ' if names else ''}a number from 0 to {(field.classes or 1) - 1}{known}",
        hint=f"did you mean {near!r}?" if near else None,
    )


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{value!r} is no number") from error


def _other(value: Any, field: Field, size: Size | None) -> Any:
    """A value of no particular kind: an image or an array from a file, JSON, else what it is."""
    if isinstance(value, Image.Image):
        value = image_of(value, field, field.channels or (1 if value.mode in ("1", "L") else 3))
    if isinstance(value, str | Path) and (path := Path(value).expanduser()).suffix and path.is_file():
        if path.suffix.lower() == ".npy":
            value = np.load(path, allow_pickle=False)
        elif path.suffix.lower() in files.SUFFIXES:
            value = open_image(path, field, field.channels or (1 if _is_grey(path) else 3))
    if isinstance(value, Image.Image):
        view = None if size is None else draw_view((value.height, value.width), size)
        return to_tensor(value) if view is None else view.image(value)
    if isinstance(value, np.ndarray) and size is not None and value.ndim in (2, 3):
        return draw_view((value.shape[-2], value.shape[-1]), size).numbers(value)
    if isinstance(value, str) and field.kind in ("boxes", "other") and value.lstrip()[:1] in tuple("[{-0123456789"):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return torch.tensor(value, dtype=torch.float32 if field.kind == "boxes" else None)
    return value


def _is_grey(path: Path) -> bool:
    try:
        return files.look(str(path), files.Limits()).grey
    except files.BadSampleError:
        return False
