"""The label maps of a folder: found beside the images, examined before training, and turned into ids."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmkit.data.sample import Problem
from ldmkit.data.sources.folder.image_files import walk
from ldmkit.errors import DataError
from ldmkit.fields import Color, Field
from ldmkit.images.files import BadSampleError, Limits, printable, read_ids
from ldmkit.images.label_map import IGNORED, by_value, ids_of
from ldmkit.images.view import sizes_differ

ENDINGS = (
    "_mask",
    "_map",
    "_seg",
    "_label",
    "_labels",
    "-mask",
    "-map",
    "-seg",
    "-label",
    "-labels",
)  # x_mask.png of x.png
NAME_FILES = ("classes.json", "labels.json", "names.json", "id2label.json")
FEW = 16  # different numbers in all maps: so few, far apart, are painted and no class numbers


class LabelMaps:
    """The map of each image.

    Args:
        files: image (relative to the data's root) -> the path of its map.
        classes: how many there are; None: one more than the largest id found (255, unlabelled, aside).
        colors: for maps painted in colours: the colour of each id. None: the pixels are the ids.
        values: for maps painted in other numbers than 0, 1, 2 ...: the number of each id.

    Raises DataError where `classes` differs from the number of `colors`, `values` or `names`.
    """

    def __init__(
        self,
        files: Mapping[str, str],
        limits: Limits,
        *,
        classes: int | None = None,
        colors: Sequence[Color] | None = None,
        values: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        counted = {"map_colors": colors, "map_values": values}
        for option, listed in counted.items():
            if listed is not None and classes is not None and classes != len(listed):
                raise DataError(f"map_classes is {classes} and {option} has {len(listed)} entries; give one of them")
        self.files, self.limits = files, limits
        self.classes = next((len(listed) for listed in counted.values() if listed is not None), classes)
        self.palette = None if colors is None else tuple((c[0], c[1], c[2]) for c in colors)
        self.values = None if values is None else tuple(values)
        self.names = None if names is None else tuple(names)
        self.indexed: tuple[Color, ...] | None = None  # the colours of indexed maps, where all have the same
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def path(self, picture: str) -> str | None:
        """The map of an image; None where there is none."""
        return self.files.get(picture)

    def ids(self, path: str) -> NDArray[np.integer[Any]]:
        """The ids (h, w) of a map file; `DataError` for a colour nobody named or an id out of range."""
        ids = by_value(self._numbers(path), self.field(), DataError, printable(path))
        if self.classes is not None:
            _check_range(ids, self.classes, path)
        return ids

    def _numbers(self, path: str) -> NDArray[np.integer[Any]]:
        """What the file says, before its numbers are looked up in `values`."""
        try:
            image = read_ids(path, self.limits)
        except BadSampleError as error:
            raise DataError(f"the label map cannot be used: {error.reason}", where=printable(path)) from error
        return ids_of(image, Field("map", palette=self.palette), DataError, printable(path))

    def examine(self, sizes: Mapping[str, tuple[int, int]], root: str) -> None:
        """Reads the map of every image (path -> (h, w)), and sets what nobody said: classes, values, colours.

        Raises DataError where no image has a map, a map cannot be read, or its numbers leave open how many classes
        there are.
        """
        found: set[int] = set()
        palettes: set[tuple[int, ...] | None] = set()
        missing = 0
        for picture, size in sizes.items():
            path = self.path(picture)
            if path is None:
                missing += 1
                self.problems.append(Problem(os.path.join(root, picture), "no label map for it", skipped=False))
                continue
            ids = self._numbers(path)
            if ids.shape != size:
                raise sizes_differ(size, ids.shape, "map", os.path.join(root, picture), path)
            found |= {int(value) for value in np.unique(ids)}
            palettes.add(_palette(path))
        if missing == len(sizes):
            raise DataError(
                f"none of the {len(sizes)} images has a label map here",
                hint="the map of a/b.jpg is a/b.png below the folder that data.maps names",
                where=printable(root),
            )
        self._learn(found, root)
        if len(palettes) == 1 and (colours := palettes.pop()) is not None and self.values is None:
            triples = list(zip(colours[::3], colours[1::3], colours[2::3], strict=True))
            self.indexed = tuple(triples[: self.classes]) if len(triples) >= (self.classes or 0) else None
        if self.values is not None or max(found - {IGNORED}, default=-1) >= (self.classes or 0):
            for path in self.files.values():
                self.ids(path)  # names the file that has a number out of range
        self._say(found)

    def _learn(self, found: set[int], root: str) -> None:
        """Classes and values from the numbers in the maps, where they are clear. Raises `DataError` where they are not."""
        if self.classes is not None or self.names is not None:
            self.classes = self.classes if self.classes is not None else len(self.names or ())
            return
        numbers = sorted(found - {IGNORED})
        if found == {0, IGNORED}:
            self.values = (0, IGNORED)
        elif found and len(found) <= FEW and len(found) >= 3 and _even(sorted(found)):
            self.values = tuple(sorted(found))
        elif len(numbers) <= FEW and numbers and numbers[-1] + 1 > 4 * len(numbers) and numbers[-1] >= FEW:
            listed = ", ".join(map(str, numbers))
            raise DataError(
                f"the maps hold the numbers {listed}: {len(numbers)} classes painted so, or {numbers[-1] + 1} classes of which "
                "few are seen?",
                hint=f"say which: data.map_values: [{listed}], or data.map_classes: {numbers[-1] + 1}",
                where=printable(root),
            )
        self.classes = len(self.values) if self.values is not None else max(numbers, default=-1) + 1

    def _say(self, found: set[int]) -> None:
        seen = f"{len(found - {IGNORED}) if self.values is None else len(found)} seen"
        painted = f", painted {', '.join(map(str, self.values))}" if self.values is not None else ""
        unlabelled = f"; {IGNORED} is unlabelled" if self.ignore is not None and IGNORED in found else ""
        self.notes.append(f"label maps: {self.classes} classes, {seen}{painted}{unlabelled}")

    @property
    def ignore(self) -> int | None:
        """The number that means unlabelled."""
        painted = self.values is not None and IGNORED in self.values
        return IGNORED if self.classes is not None and self.classes <= IGNORED and not painted else None

    def field(self) -> Field:
        """What the maps hold."""
        return Field(
            "map",
            self.classes,
            self.names,
            palette=self.palette or self.indexed,
            ignore=self.ignore,
            values=self.values,
        )


def _even(values: list[int]) -> bool:
    """Whether numbers are as far from one another as they can be told apart: painted, not counted."""
    steps = {round(b - a, 0) for a, b in pairwise(values)}
    return values[0] == 0 and min(steps) >= 10 and max(steps) - min(steps) <= 2


def _palette(path: str) -> tuple[int, ...] | None:
    """The colours of an indexed file, red, green, blue in turn."""
    with Image.open(path) as image:
        found = image.getpalette("RGB") if image.mode == "P" else None
    return None if found is None else tuple(found)


def _check_range(ids: NDArray[np.integer[Any]], classes: int, path: str) -> None:
    wrong = ids[(ids >= classes) & (ids != IGNORED) | (ids < 0)]
    if wrong.size:
        raise DataError(
            f"the map holds the id {int(wrong.flat[0])} ({wrong.size} pixels out of range); "
            f"allowed: 0 to {classes - 1}, and {IGNORED} for unlabelled",
            hint="give data.map_classes, or fix the map",
            where=printable(path),
        )


# where the maps lie


def in_folder(root: str, pictures: Sequence[str]) -> tuple[dict[str, str], list[Problem]]:
    """Image -> its map in a parallel tree below `root`.

    ``a/b.jpg`` has ``a/b.png`` (or .tif, .bmp ...), or ``a/b_mask.png``. Raises DataError where `root` is no folder.
    """
    if not os.path.isdir(root):
        raise DataError("there is no such folder of label maps", where=printable(root))
    files: dict[str, str] = {}
    problems = []
    for path in walk(root).pictures:
        stem = posixpath.splitext(path)[0]
        if stem in files:
            problems.append(Problem(os.path.join(root, path), f"{files[stem]} is taken as the map"))
        else:
            files[stem] = path
    found = {}
    for picture in pictures:
        own = posixpath.splitext(picture)[0]
        matching = [own + ending for ending in ("", *ENDINGS) if own + ending in files]
        if matching:
            found[picture] = os.path.join(root, files[matching[0]])
    return found, problems


def beside(pictures: Sequence[str]) -> dict[str, str]:
    """Image -> its map among `pictures` themselves: ``x_mask.png`` of ``x.jpg``, where every file of that ending has an image."""
    stems = {posixpath.splitext(picture)[0]: picture for picture in pictures}
    for ending in ENDINGS:
        maps = {stem: picture for stem, picture in stems.items() if stem.endswith(ending)}
        if maps and all(stem.removesuffix(ending) in stems for stem in maps):
            return {stems[stem.removesuffix(ending)]: picture for stem, picture in maps.items()}
    return {}


def class_names(folder: str) -> tuple[str, ...] | None:
    """The names of the classes in a JSON file in `folder` (a list, or number -> name, or name -> number), by id.

    Raises DataError for a file that cannot be read or holds something else.
    """
    for name in NAME_FILES:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            continue
        try:
            with open(path, encoding="utf-8-sig") as file:
                loaded = json.load(file)
            if isinstance(loaded, dict):
                by_number = all(str(key).isdecimal() for key in loaded)
                pairs = [(int(k), v) if by_number else (int(v), k) for k, v in loaded.items()]
                loaded = [str(name) for _, name in sorted(pairs)]
                if [number for number, _ in sorted(pairs)] != list(range(len(pairs))):
                    raise ValueError("the numbers are not 0, 1, 2 ...")
            if not isinstance(loaded, list) or not all(isinstance(one, str) for one in loaded):
                raise ValueError("it is no list of names")
        except (ValueError, TypeError, OSError) as error:
            raise DataError(
                f"the names of the classes cannot be read: {error}",
                hint='["sky", "road"], or {"0": "sky", "1": "road"}',
                where=printable(path),
            ) from error
        return tuple(loaded)
    return None
