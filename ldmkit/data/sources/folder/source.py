"""`folder`: the user's own pictures, with captions, classes and label maps beside them."""

from __future__ import annotations

import copy
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from ldmkit.data.sample import Info, Problem, Sample
from ldmkit.data.source import Part, Source
from ldmkit.data.sources.folder.checksums import Checksums
from ldmkit.data.sources.folder.index import Asked, Entry
from ldmkit.data.sources.folder.label_maps import LabelMaps, class_names, in_folder
from ldmkit.data.sources.folder.scan import MAP, scan
from ldmkit.errors import DataError
from ldmkit.fields import Color, Field
from ldmkit.images.files import Limits, printable, read

MEMORY = 512 * 2**20  # bytes of decoded pictures that are kept


class FolderSource(Source):
    """Pictures below `path`, in any folder, of any mode; those that cannot be used are listed in `problems` and left out.

    Args:
        path: the folder. ``train/`` and ``validation/`` in it are what they say; else `validation` decides.
        split: which folders in it are trained on and which held out: {train: [a, b], validation: c}.
        maps: a parallel folder of label maps: the map of ``a/b.jpg`` is ``a/b.png`` there. Field `map`. Or the name of a field of
            images that are label maps (`mask` for a column `mask_file_name`).
        map_classes: how many classes the maps have; default: counted. 255 means unlabelled.
        map_colors: for maps painted in colours, the [r, g, b] of each class.
        map_values: for maps painted in other numbers than 0, 1, 2 ..., the number of each class.
        map_names: the names of the classes; default: those of a file ``classes.json`` beside the maps.
        aligned: fields of images that are cropped, mirrored and resized with `image`; default: those of the same size as theirs.
        classes: the class names, in the order of their ids; default: all there are, in natural order (2 before 11).
        validation: the share held out, by a hash of the file name.
        background: [r, g, b] that shows through transparent pixels.
        value_range: [black, white] of pictures in floats or 32-bit integers, which are refused without it.
        max_pixels: larger pictures are left out before they are decoded.
        smallest: pictures with a side shorter than this are left out.
        encoding: of the metadata files.
        check: decode every picture once at the start. Without it, a file cut short is found when its turn comes.
        checksums: a list as `sha256sum` writes it in `path`; a picture that is not what it says is left out when its turn comes.

    Fields: `image`, `file_name`; `label` from a column or from sub-folders; `map`; `boxes` from ``objects``; `keypoints`; and
    each column of ``metadata.jsonl`` or ``metadata.csv`` under its name. Raises DataError for options out of range, and for a
    folder, table or map that cannot be read.
    """

    def __init__(
        self,
        *,
        path: str,
        split: dict[str, str | list[str]] | None = None,
        maps: str | None = None,
        map_classes: int | None = None,
        map_colors: tuple[tuple[int, int, int], ...] | None = None,
        map_values: tuple[int, ...] | None = None,
        map_names: tuple[str, ...] | None = None,
        aligned: tuple[str, ...] | None = None,
        classes: tuple[str, ...] | None = None,
        validation: float = 0.1,
        background: tuple[int, int, int] = (255, 255, 255),
        value_range: tuple[float, float] | None = None,
        max_pixels: int = 64_000_000,
        smallest: int = 32,
        encoding: str = "utf-8",
        check: bool = True,
        checksums: str | None = None,
    ) -> None:
        if not 0 <= validation < 1:
            raise DataError(f"validation is {validation}; it is the share held out, at least 0 and below 1")
        if value_range is not None and not value_range[0] < value_range[1]:
            raise DataError(f"value_range is {list(value_range)}; it is [black, white] with black < white")
        self.limits = Limits(max_pixels, smallest, background, value_range)
        folder = None if maps is None else os.path.expanduser(maps)
        asked = Asked(
            maps=folder,
            classes=classes,
            validation=validation,
            encoding=encoding,
            decode=check,
            split=split,
            aligned=aligned,
        )
        self.index = scan(path, self.limits, asked)
        self.limits = replace(self.limits, value_range=self.index.range)
        self.checksums = None if checksums is None else Checksums(checksums, self.index.root)
        self.maps = self._label_maps(folder, map_classes, map_colors, map_values, map_names)
        if self.maps is not None and (check or self.maps.classes is None):
            self.maps.examine({entry.picture: entry.look.size for entry in self.index.entries}, self.index.root)
        self._part: Part = "train"
        self._rows = self._of("train")
        self._kept: OrderedDict[str, Image.Image] = OrderedDict()

    def _label_maps(
        self,
        folder: str | None,
        classes: int | None,
        colors: tuple[Color, ...] | None,
        values: tuple[int, ...] | None,
        names: tuple[str, ...] | None,
    ) -> LabelMaps | None:
        """The maps beside the images, of a column, or in a folder of their own."""
        files = {picture: self.index.path(path) for picture, path in self.index.maps.items()}
        problems: list[Problem] = []
        if not files and folder is not None:
            files, problems = in_folder(folder, [entry.picture for entry in self.index.entries])
        if not files and folder is None:
            return None
        place = (
            folder if folder is not None and os.path.isdir(folder) else os.path.dirname(next(iter(files.values()), ""))
        )
        names = names or class_names(place)
        made = LabelMaps(
            files, Limits(self.limits.max_pixels), classes=classes, colors=colors, values=values, names=names
        )
        made.problems += problems
        return made

    def _of(self, part: Part) -> list[int]:
        return [row for row, own in enumerate(self.index.parts) if own == part]

    def split(self, part: Part) -> FolderSource:
        """The pictures to train on, or those held out; never the same file in both.

        Raises DataError where none is left.
        """
        twin = copy.copy(self)
        twin._part, twin._rows, twin._kept = part, self._of(part), OrderedDict()
        if not twin._rows:
            raise DataError(
                f"none of the {len(self.index.entries)} images is left for {part}",
                hint="give more images, or another share: data.validation",
                where=printable(self.index.root),
            )
        return twin

    def info(self) -> Info:
        """Fields, classes, and a summary of what was found in `notes`."""
        image = Field("image", range=self.limits.value_range, background=self.limits.background)
        fields = {"image": image, "file_name": Field("text")}
        fields |= {name: column.field for name, column in self.index.columns.items()}
        notes = list(self.index.notes)
        if self.maps is not None:
            fields[MAP] = self.maps.field()
            notes += self.maps.notes
        return Info(len(self._rows), fields, licence="your own pictures", notes=tuple(notes))

    def holds_out(self) -> bool:
        """Whether an image is left for validation."""
        return "validation" in self.index.parts

    def sizes(self) -> list[tuple[int, int]]:
        """Read from the pictures' headers at the scan."""
        return [self.index.entries[row].look.size for row in self._rows]

    def contents(self) -> Mapping[str, str]:
        """Picture -> a digest of its content and of what is known about it; of its size on disk where nothing was decoded."""
        return {printable(self.index.entries[row].picture): self._mark(self.index.entries[row]) for row in self._rows}

    def _mark(self, entry: Entry) -> str:
        content = entry.look.digest or str(os.path.getsize(self.index.path(entry.picture))).encode()
        known = "" if entry.row is None else repr(sorted(entry.row.values.items(), key=repr))
        size = "" if self.maps is None or (path := self.maps.path(entry.picture)) is None else os.path.getsize(path)
        return hashlib.blake2b(content + f"{known}{size}".encode(errors="replace"), digest_size=12).hexdigest()

    @property
    def problems(self) -> Sequence[Problem]:
        """Files left out, or used with a remark."""
        return (*self.index.problems, *(self.maps.problems if self.maps else ()))

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        picture = self.index.entries[row].picture
        path = self.index.path(picture)
        origins = {"image": path}
        loaders: dict[str, Callable[[], Any]] = {
            "image": partial(self._picture, path),
            "file_name": lambda: printable(picture),
        }
        for name, column in self.index.columns.items():
            if column.field.kind == "image":
                loaders[name] = partial(self._partner, name, column.field.channels or 3, column.values[row])
                origins[name] = self.index.path(column.values[row] or "none")
            else:
                loaders[name] = partial(column.values.__getitem__, row)
        if self.maps is not None:
            map_path = self.maps.path(picture)
            loaders[MAP] = partial(self._map, map_path)
            origins[MAP] = map_path or "none"
        return Sample(loaders, name=printable(path), origins=origins)

    def _picture(self, path: str) -> Image.Image:
        """Decoded, from memory where it is still there."""
        if path in self._kept:
            self._kept.move_to_end(path)
            return self._kept[path]
        if self.checksums is not None:
            self.checksums.check(path)
        image = read(path, self.limits)
        self._kept[path] = image
        while len(self._kept) > 1 and sum(4 * i.width * i.height for i in self._kept.values()) > MEMORY:
            self._kept.popitem(last=False)
        return image

    def _partner(self, name: str, channels: int, picture: str | None) -> Image.Image | None:
        """Another image of a row, grey where all of its column are; not kept in memory."""
        if picture is None:
            return None
        return read(self.index.path(picture), self.index.partner_limits[name], channels=channels)

    def _map(self, path: str | None) -> Any:
        return None if path is None or self.maps is None else self.maps.ids(path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}  # a data worker decodes for itself
