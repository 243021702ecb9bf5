"""`webdataset`: tar shards on a disk, read by place, in an order that resumes exactly."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from ldmkit.data.held_out import check_share, rows_of
from ldmkit.data.sample import Info, Problem, Sample
from ldmkit.data.source import Part, Shards, Source
from ldmkit.data.sources.columns import PICTURES, Column, File, chosen, decoded, described, loaders
from ldmkit.data.sources.folder.row_fields import labels
from ldmkit.data.sources.webdataset import tar_index
from ldmkit.data.sources.webdataset.tar_index import Shard
from ldmkit.errors import DataError
from ldmkit.fields import Field, Kind
from ldmkit.images.files import SUFFIXES, BadSampleError, Limits, look, printable

USUAL = {
    "image": tuple(suffix[1:] for suffix in (".jpg", ".jpeg", *SUFFIXES)),
    "caption": ("txt", "text", "caption"),
    "label": ("cls", "class"),
}
PROBED = 32  # samples that are read to know which fields there are
HEADER = 2**16  # bytes in which a picture's size stands


class WebdatasetSource(Source):
    """Samples in tar shards, as WebDataset writes them: ``0001.jpg`` and ``0001.txt``, one after the other, are one sample.

    Args:
        path: one shard, a folder of them, a pattern with braces or wildcards (``train-{000..127}.tar``), or a list of these.
        validation: the share held out, by a hash of the key; or the path of other shards.
        columns: field -> extension (``{map: seg.png}``), or a key of the JSON file (``{caption: json.title}``).
        classes: field -> how many classes it has, or their names: for maps, and for labels that need not be counted then.
        together: shards whose samples are mixed. 1 reads one after the other; as many as there are mixes everything.
        smallest: pictures with a side shorter than this are passed over.

    Fields: `image`, `caption` (``.txt``), `label` (``.cls``), the keys of ``.json``, `key`, other files by their extension.
    An epoch takes the shards in a drawn order, and the samples of `together` of them in a drawn order. Raises DataError
    where there is no sample or no picture, and where the number of classes is not known.
    """

    def __init__(
        self,
        *,
        path: str | tuple[str, ...],
        validation: float | str = 0.1,
        columns: dict[str, str] | None = None,
        classes: dict[str, int | tuple[str, ...]] | None = None,
        together: int = 1,
        smallest: int = 32,
    ) -> None:
        if together < 1:
            raise DataError(f"together is {together}; at least 1 shard is read at a time")
        self.limits, self.together, self._problems = Limits(smallest=smallest), together, list[Problem]()
        self._shards = self._indexed((path,) if isinstance(path, str) else path)
        self._others: list[Shard] | None = None
        if isinstance(validation, str):
            self._others, self.validation = self._indexed((validation,)), 0.0
        else:
            check_share(validation)
            self.validation = validation
        self.columns = self._columns(columns, classes or {})
        self._choose("train")

    def _indexed(self, patterns: tuple[str, ...]) -> list[Shard]:
        shards = []
        for path in tar_index.find(patterns):
            shard, problems = tar_index.index(path)
            self._problems += problems
            if len(shard):
                shards.append(shard)
        if not shards:
            reasons = "".join(f"\n  {printable(p.path)}: {p.reason}" for p in self._problems[:5])
            raise DataError(f"there is not a single sample in {', '.join(map(printable, patterns))}{reasons}")
        return shards

    def _choose(self, part: Part) -> None:
        """Keeps the samples of a part: (shard, sample) by row, and how many each shard has."""
        if part == "validation" and self._others is not None:
            self._shards, self.validation = self._others, 0.0
            rows = np.arange(sum(map(len, self._shards)))
        elif self._others is not None:
            rows = np.arange(sum(map(len, self._shards)))
        else:
            rows = rows_of(part, [os.fsencode(key) for shard in self._shards for key in shard.keys], self.validation)
        number = np.repeat(np.arange(len(self._shards)), [len(shard) for shard in self._shards])[rows]
        firsts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        self._rows = np.stack([number, rows - firsts[number]], axis=1) if len(rows) else np.zeros((0, 2), np.int64)

    def split(self, part: Part) -> WebdatasetSource:
        """The samples to train on, or those held out; no key is in both. Raises DataError where none is left."""
        twin = copy.copy(self)
        twin._choose(part)
        if not len(twin._rows):
            raise DataError(
                f"none of the {sum(map(len, self._shards))} samples is left for {part}",
                hint="give more samples, or another share: data.validation",
            )
        return twin

    # which fields

    def _columns(self, given: dict[str, str] | None, classes: Mapping[str, int | Sequence[str]]) -> dict[str, Column]:
        there = self._probe()
        usual = {field: ext for field, known in USUAL.items() if (ext := next((e for e in known if e in there), None))}
        usual |= {name[5:]: name for name in there if name.startswith("json.") and name[5:] not in usual}
        found = chosen(given, list(there), usual)
        if "image" not in found:
            raise DataError(
                f"no picture is in the first samples; they have {', '.join(there)}",
                hint="name its extension: data.columns: {image: ...}",
                where=printable(self._shards[0].path),
            )
        return {field: Column(name, self._field(field, name, there[name], classes)) for field, name in found.items()}

    def _probe(self) -> dict[str, Kind]:
        """Extension, or ``json.key``, of the first samples -> what it holds."""
        there: dict[str, Kind] = {}
        shard = self._shards[0]
        for sample in range(min(PROBED, len(shard))):
            for extension, place in shard.files(sample).items():
                if extension == "json":
                    values = decoded(shard.read(place), extension, f"{shard.path}/{shard.keys[sample]}.json")
                    there |= {f"json.{k}": _kind(v) for k, v in values.items() if v is not None}
                elif extension not in there:
                    there[extension] = _kind_of_file(extension)
        return there

    def _field(self, field: str, name: str, kind: Kind, classes: Mapping[str, int | Sequence[str]]) -> Field:
        if field == "map":
            kind = "map"
            if field not in classes:
                raise DataError("how many classes the maps have is not known", hint="data.classes: {map: 19}")
        if field == "label":
            kind = "label"
        if kind == "label" and field not in classes:
            return self._counted(name)
        return described(field, kind, classes)

    def _counted(self, name: str) -> Field:
        """The classes of a label, from every sample."""
        shards = [*self._shards, *(self._others or ())]
        rows = [(_Row(shard, sample), shard.keys[sample]) for shard in shards for sample in range(len(shard))]
        return labels([row.get(name) for row, _ in rows], [key for _, key in rows], None).field

    # a source

    def info(self) -> Info:
        """The fields of the first samples; `key` names a sample."""
        fields = {field: column.field for field, column in self.columns.items()}
        note = f"{len(self._rows)} samples in {len(self._shards)} shards"
        return Info(len(self._rows), {**fields, "key": Field("text")}, licence="your own pictures", notes=(note,))

    def __getitem__(self, index: int) -> Sample:
        number, sample = self._rows[index]
        shard = self._shards[number]
        row, key = _Row(shard, int(sample)), shard.keys[sample]
        where = f"{shard.path}/{key}"
        own = loaders(lambda: row, self.columns, self.limits, where)
        return Sample({**own, "key": lambda: key}, name=printable(where))

    @property
    def problems(self) -> Sequence[Problem]:
        """Shards and files passed over."""
        return self._problems

    def shards(self) -> Shards:
        """How many samples of this part each shard has."""
        counts = np.bincount(self._rows[:, 0], minlength=len(self._shards))
        return Shards(tuple(int(count) for count in counts if count), self.together)

    def sizes(self) -> list[tuple[int, int]]:
        """Read from the pictures' headers; (1, 1) for one that cannot be read."""
        image = self.columns["image"].source
        return [self._size(self._shards[number], int(sample), image) for number, sample in self._rows]

    def _size(self, shard: Shard, sample: int, image: str) -> tuple[int, int]:
        place = shard.files(sample).get(image)
        for most in (HEADER, None):  # a header may be long: whole thumbnails stand in some
            try:
                return (1, 1) if place is None else look(shard.path, self.limits, content=shard.read(place, most)).size
            except BadSampleError:
                continue
        return (1, 1)

    def contents(self) -> dict[str, str]:
        """Shard -> a digest of which samples it has, and how long each of their files is."""
        return {printable(os.path.basename(shard.path)): shard.digest() for shard in self._shards}


class _Row:
    """One sample's files as columns, each read when it is asked for, the JSON once."""

    def __init__(self, shard: Shard, sample: int) -> None:
        self.shard, self.key, self.files = shard, shard.keys[sample], shard.files(sample)
        self.json = cache(self._json)

    def get(self, name: str) -> Any:
        if name.startswith("json."):
            return self.json().get(name[5:])
        if name not in self.files:
            return None
        where, content = f"{self.shard.path}/{self.key}.{name}", self.shard.read(self.files[name])
        return File(content, where) if _kind_of_file(name) in PICTURES else decoded(content, name, where)

    def _json(self) -> dict[str, Any]:
        where = f"{self.shard.path}/{self.key}.json"
        values = decoded(self.shard.read(self.files["json"]), "json", where) if "json" in self.files else {}
        if not isinstance(values, dict):
            raise BadSampleError(
                where, f"is an object {{...}} where it describes a sample; this is {type(values).__name__}"
            )
        return values


def _kind_of_file(extension: str) -> Kind:
    last = extension.rpartition(".")[2]
    if f".{last}" in SUFFIXES:
        return "image"
    return "text" if last in USUAL["caption"] else "label" if last in USUAL["label"] else "other"


def _kind(value: Any) -> Kind:
    if isinstance(value, str):
        return "text"
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else "other"
