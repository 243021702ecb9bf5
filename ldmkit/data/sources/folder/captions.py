"""Captions in files beside the images: ``x.txt`` or ``x.caption`` for ``x.png``."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence

from ldmkit.data.sources.folder.row_fields import Column, captions
from ldmkit.errors import DataError
from ldmkit.images.files import printable

SUFFIXES = (".caption", ".txt")
BOX = re.compile(r"\d+(\s+[\d.eE+-]+){4,}")  # a line of a detector's labels (YOLO): a class and numbers


def beside(root: str, pictures: Sequence[str], files: Sequence[str]) -> tuple[Column | None, list[str]]:
    """The captions of `pictures` in text files among `files` (both relative to `root`), or None, and what to say of them.

    Lines of a file are several captions. Raises `DataError` where one image has files of both kinds with other words in them,
    or a file is no text.
    """
    stems = {posixpath.splitext(picture)[0] for picture in pictures}
    found: dict[str, dict[str, str]] = {}
    for file in files:
        stem, suffix = posixpath.splitext(file)
        own = stem if stem in stems else posixpath.splitext(stem)[0]  # also x.png.txt
        if suffix.lower() in SUFFIXES and own in stems:
            found.setdefault(own, {})[suffix.lower()] = _read(os.path.join(root, file))
    texts = {stem: _one(root, stem, own) for stem, own in found.items()}
    lines = {stem: [line.strip() for line in text.split("\n") if line.strip()] for stem, text in texts.items()}
    if not any(lines.values()):
        return None, [f"{len(lines)} caption files, and every one is empty"] if lines else []
    if all(BOX.fullmatch(line) for own in lines.values() for line in own):
        return None, [f"{len(lines)} .txt files hold boxes of a detector and no captions: they are not read"]
    cells = [lines.get(posixpath.splitext(picture)[0]) for picture in pictures]
    there = [cell for cell in cells if cell]
    notes = [f"captions: {len(there)} of {len(cells)} images have one beside them"]
    if several := sum(len(cell) > 1 for cell in there):
        notes.append(f"captions: {several} images have several lines; one is drawn for each view")
    return captions(cells), notes


def _read(path: str) -> str:
    with open(path, "rb") as file:
        raw = file.read()
    try:
        return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError("a caption that is not UTF-8", hint="save it as UTF-8", where=printable(path)) from error


def _one(root: str, stem: str, own: dict[str, str]) -> str:
    if len({text.strip() for text in own.values()}) > 1:
        raise DataError(
            f"{' and '.join(own)} are both beside the image, with other words in them",
            hint="move the files of one kind out of the folder",
            where=printable(os.path.join(root, stem)),
        )
    return next(iter(own.values()))
