"""Image files as they lie in people's folders: looked at without being trusted, decoded, brought to sRGB."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from ldmkit.errors import DataError
from ldmkit.fields import Color
from ldmkit.images.pixels import SIXTEEN_BIT, WHITE, to_pixels, upright

# No other decoder is ever tried: Pillow would start Ghostscript for a file that says it is PostScript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
LOSSY = ("JPEG", "MPO")  # these smear one class of a label map into the next
ORIENTATION = 0x0112  # the EXIF tag; from 5 on the image lies on its side


class BadSampleError(DataError):
    """One image that cannot be used; `path` is its file, `reason` why. The others can still be."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason, where=printable(path))
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type[BadSampleError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


def printable(path: str) -> str:
    """A path that can be written anywhere: bytes that are no UTF-8 become ``\\xNN``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Limits:
    """What is accepted: pixels in all, and the shorter side; and how pixels become colours (see `to_rgb8`)."""

    max_pixels: int = 64_000_000
    smallest: int = 1
    background: Color = WHITE
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Look:
    """What the header of an image says; `size` is (h, w) as it will be seen. `digest` is None where the file was not decoded.

    `peak` is the largest number in a 16-bit grey file that was decoded, `remark` what a person should know of the file.
    """

    size: tuple[int, int]
    grey: bool = False
    frames: int = 1
    digest: bytes | None = None
    deep: bool = False  # a grey file of 16 bits
    peak: int | None = None
    remark: str | None = None


def look(path: str, limits: Limits, *, decode: bool = False, content: bytes | None = None) -> Look:
    """The header of a picture, or `BadSampleError`. `decode` reads all of it as well: a file cut short opens without a word.

    Here and below, `content` is what the file holds, for pictures inside other files; `path` then only names it.
    """
    with _opened(path, limits, content) as image:
        if image.mode in ("I", "F") and image.format != "PNG" and limits.value_range is None:
            raise BadSampleError(path, f"pixels of mode {image.mode} have no range of their own; give value_range")
        size, kind = (image.height, image.width), image.format
        grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
        frames = getattr(image, "n_frames", 1)
        turned, deep, peak = _orientation(image) >= 5, image.mode in SIXTEEN_BIT, None
        remark = _remark(image)
        if decode:
            image.draft(
                None, (max(1, image.width // 8), max(1, image.height // 8))
            )  # a JPEG is read whole, but painted small
            image.load()
            peak = int(np.asarray(image).max()) if deep else None
    if decode and kind == "PNG":  # Pillow stops at the last row; what the checksums say is only asked by `verify`
        with _opened(path, limits, content) as image:
            image.verify()
    digest = _digest(path) if decode and content is None else None
    return Look(size[::-1] if turned else size, grey, frames, digest, deep, peak, remark)


def _remark(image: Image.Image) -> str | None:
    """What `read` passes over in a file, in words that stand behind a number of files."""
    gamma = image.info.get("gamma")  # of a PNG: the exponent it was encoded with, 1 / 2.2 for sRGB
    if isinstance(gamma, float) and abs(gamma - 1 / 2.2) > 0.05 and "srgb" not in image.info:
        return (
            f"whose gAMA says {gamma:g} where sRGB has 0.45: they are read as sRGB, so convert them if they look wrong"
        )
    if image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        return "with 16 bits a colour, of which the upper 8 are read"
    return None


def read(path: str, limits: Limits, content: bytes | None = None, *, channels: int = 3) -> Image.Image:
    """The image, upright, in sRGB, 8-bit "RGB" or with one channel "L", or `BadSampleError`."""
    with _opened(path, limits, content) as image:
        try:
            return to_pixels(upright(image), channels, background=limits.background, value_range=limits.value_range)
        except DataError as error:
            raise BadSampleError(path, error.message) from error


def read_ids(path: str, limits: Limits, content: bytes | None = None) -> Image.Image:
    """A label map as it is stored, upright, or `BadSampleError`: also for one that was saved with loss."""
    with _opened(path, limits, content) as image:
        if image.format in LOSSY:
            reason = (
                f"a label map saved as {image.format}: its class numbers are smeared into numbers that nobody wrote"
            )
            raise BadSampleError(path, f"{reason}; save the maps without loss, as PNG")
        image.load()
        return upright(image)


@contextmanager
def _opened(path: str, limits: Limits, content: bytes | None = None) -> Iterator[Image.Image]:
    """An opened picture. Whatever goes wrong with it, then or while it is read, is a `BadSampleError`; warnings are dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(path) if content is None else _open_content(path, content)
        try:
            _check(path, image, limits)
            yield image
        except (BadSampleError, MemoryError):
            raise
        except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, zlib.error ...
            raise BadSampleError(path, f"cannot be decoded: {_reason(error)}") from error
        finally:
            image.close()


def _open(path: str) -> Image.Image:
    """Looks before it opens: a FIFO would block for ever."""
    try:
        status = os.stat(path)
    except OSError as error:
        broken = "a link that leads nowhere: " if os.path.islink(path) else ""
        raise BadSampleError(path, f"{broken}{error.strerror or error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadSampleError(path, "not a regular file")
    if status.st_size == 0:
        raise BadSampleError(path, "the file is empty")
    return _open_picture(path, path)


def _open_content(path: str, content: bytes) -> Image.Image:
    if not content:
        raise BadSampleError(path, "the file is empty")
    return _open_picture(path, io.BytesIO(content))


def _open_picture(path: str, file: str | io.BytesIO) -> Image.Image:
    try:
        return Image.open(file, formats=_formats())
    except UnidentifiedImageError as error:
        raise BadSampleError(path, f"not a picture in a format that is read ({', '.join(_formats())})") from error
    except Exception as error:  # as above; also DecompressionBombError, which is no OSError
        raise BadSampleError(path, f"cannot be opened: {_reason(error)}") from error


def _check(path: str, image: Image.Image, limits: Limits) -> None:
    named = f"{image.height} x {image.width} pixels (h x w)"
    if image.width * image.height > limits.max_pixels:
        raise BadSampleError(path, f"{named} are more than max_pixels = {limits.max_pixels}")
    if min(image.size) < limits.smallest:
        raise BadSampleError(path, f"{named} have a side shorter than smallest = {limits.smallest}")


def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken EXIF block; `upright` leaves such a picture as it is
        return 1


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).digest()[:16]


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
