"""Picture files as they lie in people's folders: found, looked at without being trusted, decoded."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from PIL import Image, UnidentifiedImageError

from ldmkit.data.sample import BadSampleError, Color, Problem
from ldmkit.errors import DataError
from ldmkit.images import WHITE, to_rgb8, upright

# No other decoder is ever tried: Pillow would start Ghostscript for a file that says it is PostScript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
ORIENTATION = 0x0112  # the EXIF tag; from 5 on the picture lies on its side


@dataclass(frozen=True)
class Limits:
    """What is accepted: pixels in all, and the shorter side; and how pixels become colours (see `to_rgb8`)."""

    max_pixels: int = 64_000_000
    smallest: int = 1
    background: Color = WHITE
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Look:
    """What the header of a picture says; `size` is (h, w) as it will be seen. `digest` is None where the file was not decoded."""

    size: tuple[int, int]
    grey: bool = False
    frames: int = 1
    digest: bytes | None = None


@dataclass
class Tree:
    """What a folder holds: paths below it with "/", sorted by their bytes, so that every machine has the same order."""

    pictures: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # by suffix
    folders: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def walk(root: str, *, without: str | None = None, metadata: Iterable[str] = ()) -> Tree:
    """Every picture below `root`, through links but no folder twice; hidden files and the folder `without` are left out."""
    tree, seen = Tree(), set[tuple[int, int]]()

    def complain(error: OSError) -> None:
        tree.problems.append(Problem(str(error.filename), error.strerror or str(error)))

    for folder, folders, files in os.walk(root, followlinks=True, onerror=complain):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            tree.problems.append(Problem(folder, "a link to a folder that is read already"))
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        keep = [f for f in folders if not f.startswith(".") and not _same(os.path.join(folder, f), without)]
        folders[:] = sorted(keep, key=os.fsencode)
        relative = "" if folder == root else os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        tree.folders += [relative + name for name in folders]
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if name in metadata:
                tree.metadata.append(relative + name)
            elif suffix in SUFFIXES:
                tree.pictures.append(relative + name)
            else:
                tree.others[suffix or "no suffix"] += 1
        for name in folders:  # a folder that is called like a picture is one all the same
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                tree.problems.append(Problem(os.path.join(folder, name), "a folder, whatever its name"))
    tree.pictures.sort(key=os.fsencode)
    tree.metadata.sort(key=os.fsencode)
    return tree


def _same(path: str, other: str | None) -> bool:
    return other is not None and os.path.realpath(path) == os.path.realpath(other)


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
        turned = _orientation(image) >= 5
        if decode:
            image.draft(
                None, (max(1, image.width // 8), max(1, image.height // 8))
            )  # a JPEG is read whole, but painted small
            image.load()
    if decode and kind == "PNG":  # Pillow stops at the last row; what the checksums say is only asked by `verify`
        with _opened(path, limits, content) as image:
            image.verify()
    digest = _digest(path) if decode and content is None else None
    return Look(size[::-1] if turned else size, grey, frames, digest)


def read(path: str, limits: Limits, content: bytes | None = None) -> Image.Image:
    """The picture, upright, 8-bit "RGB", or `BadSampleError`."""
    with _opened(path, limits, content) as image:
        try:
            return to_rgb8(upright(image), background=limits.background, value_range=limits.value_range)
        except DataError as error:
            raise BadSampleError(path, error.message) from error


def read_ids(path: str, limits: Limits, content: bytes | None = None) -> Image.Image:
    """A label map as it is stored, upright, or `BadSampleError`."""
    with _opened(path, limits, content) as image:
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


def look_at_all(paths: list[str], limits: Limits, *, decode: bool) -> Iterator[tuple[str, Look | BadSampleError]]:
    """(path, what it is or why it cannot be used) in the order given."""

    def one(path: str) -> Look | BadSampleError:
        try:
            return look(path, limits, decode=decode)
        except BadSampleError as error:
            return error

    # One filter around the threads: each one's own would fight over the process's list of filters.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            yield from zip(paths, pool.map(one, paths), strict=True)


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
