"""The label maps of a folder: a parallel tree of files, found, checked before training, and turned into ids."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ldmkit.data.sample import Problem
from ldmkit.data.sources.folder.image_files import walk
from ldmkit.errors import DataError
from ldmkit.fields import Color, Field
from ldmkit.images.files import BadSampleError, Limits, printable, read_ids
from ldmkit.images.pixels import to_ids
from ldmkit.images.view import sizes_differ

IGNORED = 255  # the id that means unlabelled


class LabelMaps:
    """Maps below `root`: the picture ``a/b.jpg`` has the map ``a/b.png`` (or .tif, .bmp ...).

    Args:
        classes: how many there are; None: one more than the largest id found (255, unlabelled, aside).
        colors: for maps painted in colours: the colour of each id. None: the pixels are the ids.
    """

    def __init__(self, root: str, limits: Limits, *, classes: int | None, colors: Sequence[Color] | None) -> None:
        if classes is not None and colors is not None and classes != len(colors):
            raise DataError(f"map_classes is {classes} and map_colors has {len(colors)} colours; give one of them")
        if not os.path.isdir(root):
            raise DataError("there is no such folder of label maps", where=printable(root))
        self.root, self.limits, self.colors = root, limits, None if colors is None else [tuple(c) for c in colors]
        self.classes = len(colors) if colors is not None else classes
        self.problems: list[Problem] = []
        self._files: dict[str, str] = {}
        for path in walk(root).pictures:
            stem = posixpath.splitext(path)[0]
            if stem in self._files:
                self.problems.append(Problem(os.path.join(root, path), f"{self._files[stem]} is taken as the map"))
            else:
                self._files[stem] = path

    def path(self, picture: str) -> str | None:
        """The map of a picture, both relative to their roots made absolute; None where there is none."""
        file = self._files.get(posixpath.splitext(picture)[0])
        return None if file is None else os.path.join(self.root, file)

    def ids(self, path: str) -> NDArray[np.integer]:
        """The ids (h, w) of a map file; `DataError` for a colour nobody named or an id out of range."""
        image = read_ids(path, self.limits)
        if self.colors is not None:
            ids = self._from_colors(np.asarray(image.convert("RGB")), path)
        else:
            try:
                ids = to_ids(image)
            except DataError as error:
                first = image.convert("RGB").getpixel((0, 0))
                raise DataError(
                    f"{error.message}; its first pixel is {first}",
                    hint="for maps painted in colours give data.map_colors: a list of [r, g, b], one a class",
                    where=printable(path),
                ) from error
        self._check_range(ids, path)
        return ids

    def _from_colors(self, pixels: NDArray[np.uint8], path: str) -> NDArray[np.integer]:
        assert self.colors is not None
        packed = pixels.astype(np.int64) @ np.array([65536, 256, 1])
        ids = np.full(packed.shape, -1, dtype=np.int64)
        for index, color in enumerate(self.colors):
            ids[packed == int(np.array(color) @ np.array([65536, 256, 1]))] = index
        unknown = np.argwhere(ids < 0)
        if len(unknown):
            row, column = unknown[0]
            raise DataError(
                f"the colour {tuple(int(v) for v in pixels[row, column])} at row {row}, column {column} is not in map_colors "
                f"({len(unknown)} such pixels)",
                hint="add it, or save the map without smoothing and not as JPEG",
                where=printable(path),
            )
        return ids

    def _check_range(self, ids: NDArray[np.integer], path: str) -> None:
        if self.classes is None:
            return
        wrong = ids[(ids >= self.classes) & (ids != IGNORED) | (ids < 0)]
        if wrong.size:
            raise DataError(
                f"the map holds the id {int(wrong.flat[0])} ({wrong.size} pixels out of range); "
                f"allowed: 0 to {self.classes - 1}, and {IGNORED} for unlabelled",
                hint="give data.map_classes, or mend the map",
                where=printable(path),
            )

    def check(self, sizes: Mapping[str, tuple[int, int]], root: str) -> int:
        """Reads the map of every picture (path -> (h, w)); returns how many have none. Sets `classes` where it was None."""
        missing, largest = 0, -1
        for picture, size in sizes.items():
            path = self.path(picture)
            if path is None:
                missing += 1
                self.problems.append(Problem(os.path.join(root, picture), "no label map for it", skipped=False))
                continue
            try:
                ids = self.ids(path)
            except BadSampleError as error:
                raise DataError(f"the label map cannot be used: {error.reason}", where=printable(path)) from error
            if ids.shape != size:
                raise sizes_differ(size, ids.shape, "map", os.path.join(root, picture), path)
            labelled = ids[ids != IGNORED]
            largest = max(largest, int(labelled.max()) if labelled.size else -1)
        if missing == len(sizes):
            raise DataError(
                f"none of the {len(sizes)} pictures has a label map here",
                hint="the map of a/b.jpg is a/b.png below this folder",
                where=printable(self.root),
            )
        self.classes = largest + 1 if self.classes is None else self.classes
        return missing

    def field(self) -> Field:
        """What the maps hold."""
        palette = None if self.colors is None else tuple((r, g, b) for r, g, b in self.colors)
        return Field("map", self.classes, palette=palette)
