"""What was drawn or dropped on the page -> files: bounded, decoded here, and never read from a path that the page names."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ldmkit import UsageError
from ldmkit.conditioning.widgets import Boxes, File, ImageAndMask, ImageDrop, LabelMapCanvas, Mask, Widget

MOST_SIDE = 1024  # pixels of an image that is dropped
MOST_BYTES = 8 * 2**20  # of a file that is dropped
PNG = "data:image/png;base64,"
_LIKE_A_PATH = re.compile(r"[/\\]|^\s*~|\.[A-Za-z]\w{0,11}\s*$")


def write(widget: Widget, text: str, slot: str, size: tuple[int, int], folder: Path) -> list[Path] | str:
    """The files of what the page sent, or its text. `size` (h, w) is what a canvas has. Raises UsageError."""
    sent = _read(text, slot)
    if isinstance(widget, Boxes):
        return json.dumps([_box(box, widget, slot) for box in sent.get("boxes", [])])
    if isinstance(widget, LabelMapCanvas):
        return [_save(_map(sent.get("ids"), widget, slot, size), folder / f"{slot}.png")]
    if isinstance(widget, Mask):
        return [_save(Image.fromarray(_pixels(sent.get("ids"), slot, size)), folder / f"{slot}.png")]
    if isinstance(widget, ImageDrop):
        return [_save(_image(sent.get("image"), slot), folder / f"{slot}.png")]
    if isinstance(widget, ImageAndMask):
        image, mask = _image(sent.get("image"), slot), _image(sent.get("mask"), slot).convert("L")
        if mask.size != image.size:
            raise UsageError(f"{slot}: the mask is {mask.size}, the image {image.size}")
        return [_save(image, folder / f"{slot}.png"), _save(mask, folder / f"{slot}-mask.png")]
    assert isinstance(widget, File)
    return [_file(sent, widget, slot, folder)]


def names_a_file(text: str) -> bool:
    """Whether a text, or a text in its JSON, could be the path of a file: its shape says so, or one of that name is here."""
    words = [text, *re.findall(r'"([^"]*)"', text), *text.split(",")]
    return any(_LIKE_A_PATH.search(word) or _exists(word.strip()) for word in words)


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False


def _read(text: str, slot: str) -> dict[str, Any]:
    if not text:
        raise UsageError(f"{slot}: nothing was given", hint="give it, or leave the condition out with its tick")
    try:
        sent = json.loads(text)
    except ValueError:
        sent = None
    if not isinstance(sent, dict):
        raise UsageError(f"{slot}: what the page sent cannot be read")
    return sent


def _decoded(text: Any, slot: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise UsageError(f"{slot}: what the page sent cannot be read") from None


def _pixels(text: Any, slot: str, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One byte a pixel (h, w)."""
    data = np.frombuffer(_decoded(text, slot), dtype=np.uint8)
    if data.size != size[0] * size[1]:
        raise UsageError(f"{slot}: the canvas has {size[0]} x {size[1]} pixels; given: {data.size}")
    return data.reshape(size)


def _map(text: Any, widget: LabelMapCanvas, slot: str, size: tuple[int, int]) -> Image.Image:
    """Class ids (255: none) as an indexed image, whose numbers and colours are the data's own."""
    ids, count = _pixels(text, slot, size), len(widget.names)
    values = np.array(widget.values or range(count), dtype=np.uint8)
    nothing = ids == 255
    if np.any(ids[~nothing] >= count) or (widget.ignore is None and nothing.any()):
        raise UsageError(f"{slot}: the map holds a class that there is not; there are {count}")
    numbers = values[np.where(nothing, 0, ids)]
    if widget.ignore is not None:
        numbers[nothing] = widget.ignore
    colours = np.zeros(
        (256, 3), dtype=np.uint8
    )  # all 256: with fewer, a PNG is written in fewer bits than the numbers need
    colours[values] = np.array(widget.palette, dtype=np.uint8)
    image = Image.fromarray(numbers)
    image.putpalette(colours.tobytes())
    return image


def _image(text: Any, slot: str) -> Image.Image:
    """A PNG, as the page makes it of whatever was dropped."""
    if not isinstance(text, str) or not text.startswith(PNG):
        raise UsageError(f"{slot}: no image was given", hint="drop one, or leave the condition out with its tick")
    try:
        image = Image.open(io.BytesIO(_decoded(text.removeprefix(PNG), slot)), formats=["PNG"])
        if max(image.size) > MOST_SIDE:
            raise UsageError(f"{slot}: an image has at most {MOST_SIDE} pixels a side here; given: {image.size}")
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{slot}: the image cannot be read") from error
    return image.convert("RGBA" if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255) else "RGB")


def _box(box: Any, widget: Boxes, slot: str) -> list[float]:
    numbers = list(box) if isinstance(box, list) else []
    if len(numbers) != 5 or not all(isinstance(number, int | float) for number in numbers):
        raise UsageError(f"{slot}: a box is [class, left, top, right, bottom]; given: {box!r:.80}")
    which, left, top, right, bottom = numbers
    if which not in range(len(widget.names)) or not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UsageError(
            f"{slot}: a box is of one of {len(widget.names)} classes, inside the image; given: {box!r:.80}"
        )
    return [int(which), *(round(float(side), 6) for side in numbers[1:])]


def _file(sent: dict[str, Any], widget: File, slot: str, folder: Path) -> Path:
    suffix = Path(str(sent.get("name", ""))).suffix.lower()
    if widget.suffixes and suffix not in widget.suffixes:
        raise UsageError(f"{slot}: a file ends in {' or '.join(widget.suffixes)}; this one in {suffix or 'nothing'}")
    if not re.fullmatch(r"(\.\w{1,12})?", suffix):
        raise UsageError(f"{slot}: the file's name ends in {suffix!r:.40}")
    data = _decoded(sent.get("data"), slot)
    if len(data) > MOST_BYTES:
        raise UsageError(f"{slot}: a file has at most {MOST_BYTES >> 20} MB here")
    path = folder / f"{slot}{suffix}"
    path.write_bytes(data)
    return path


def _save(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path
