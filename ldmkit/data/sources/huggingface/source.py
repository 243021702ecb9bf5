"""`huggingface`: what the `datasets` library reads, from a disk or the hub, whole or as a stream."""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmkit import random
from ldmkit.data.held_out import check_share, rows_of, share
from ldmkit.data.sample import Info, Sample
from ldmkit.data.source import Part, Source
from ldmkit.data.sources.columns import PICTURES, Column, File, chosen, described, loaders
from ldmkit.data.sources.folder.row_fields import labels
from ldmkit.data.sources.huggingface.opening import fetched, library, open_split
from ldmkit.data.sources.huggingface.stream import ENDLESS, Row, Stream
from ldmkit.errors import DataError
from ldmkit.fields import Field, Kind
from ldmkit.images.files import BadSampleError, Limits, look

HELD_OUT = 256  # samples of a stream that are held out, at most
SAMPLED = 256  # rows that a fingerprint is taken of
SEARCHED = 20  # times as many rows are read to find them


class HuggingfaceSource(Source):
    """Rows of a `datasets` dataset with a column of pictures. Needs ``pip install "ldmkit[datasets]"``.

    Args:
        path: a folder that `save_to_disk` wrote, parquet, JSON, CSV or Arrow files (wildcards are fine), a folder of these or of
            pictures, or a name on the hub, ``owner/name`` or ``owner/name@revision``.
        config: the configuration, where a dataset has several.
        split: what is trained on.
        validation: what is held out: another split, or a share of this one.
        columns: field -> column; without it, the first column of pictures is `image`, and each other one a field of its name.
        classes: field -> how many classes it has, or their names; for maps, and labels that say nothing of their own.
        streaming: read one row after the other, nothing kept on the disk. Latents cannot be cached then.
        block: rows of a stream that are mixed.
        shuffle_buffer: mix a stream by the library's own buffer of so many rows instead. An interrupted run then goes on in
            another order: the buffer is lost.
        seed: of the order of a stream.
        smallest: pictures with a side shorter than this are passed over.

    Raises DataError for options out of range, where no column holds pictures, and where the number of classes is not
    known.
    """

    def __init__(
        self,
        *,
        path: str,
        config: str | None = None,
        split: str = "train",
        validation: float | str = 0.1,
        columns: dict[str, str] | None = None,
        classes: dict[str, int | tuple[str, ...]] | None = None,
        streaming: bool = False,
        block: int = 1000,
        shuffle_buffer: int = 0,
        seed: int = 0,
        smallest: int = 32,
    ) -> None:
        if block < 1 or shuffle_buffer < 0:
            raise DataError(f"block is {block} and shuffle_buffer {shuffle_buffer}; at least 1 and 0 are needed")
        if shuffle_buffer and not streaming:
            raise DataError("shuffle_buffer is for streams; what is read whole is mixed as a whole")
        self.path, self.limits, self.streaming = path, Limits(smallest=smallest), streaming
        self.block, self.buffer, self.seed = block, shuffle_buffer, seed
        self.exact = not shuffle_buffer
        opened = partial(open_split, path, config=config, streaming=streaming)
        self.table = opened(split=split)
        self._others = opened(split=validation) if isinstance(validation, str) else None
        self.validation = 0.0 if isinstance(validation, str) else validation
        check_share(self.validation)
        self.columns = self._columns(columns, classes or {})
        self.table, self._others = self._undecoded(self.table), self._undecoded(self._others)
        self._rows: NDArray[np.int64] | list[Row] | Stream
        self._choose("train")

    # which fields

    def _columns(self, given: dict[str, str] | None, classes: Mapping[str, int | Sequence[str]]) -> dict[str, Column]:
        features = self._features()
        pictures = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
        found = chosen(given, list(features), {"image": pictures[0]} if pictures else {})
        if "image" not in found:
            raise DataError(
                f"no column holds pictures; there are {', '.join(features)}",
                hint="name it: data.columns: {image: ...}; it holds pictures, their bytes, or their paths",
                where=self.path,
            )
        return {name: Column(own, self._field(name, own, features[own], classes)) for name, own in found.items()}

    def _features(self) -> Mapping[str, Any]:
        if self.table.features is None:  # a stream of files that say nothing of their columns
            self.table = self.table._resolve_features()
        features: Mapping[str, Any] = self.table.features
        return features

    def _field(self, field: str, column: str, feature: Any, classes: Mapping[str, int | Sequence[str]]) -> Field:
        kind = _kind(field, feature)
        if field in classes or kind not in ("label", "map"):
            return described(field, kind, classes)
        if (names := getattr(feature, "names", None)) is not None:
            return Field("label", len(names), tuple(names))
        if kind == "map" or self.streaming:
            raise DataError(
                f"how many classes the field {field} has is not known",
                hint=f"data.classes: {{{field}: 10}}",
                where=self.path,
            )
        cells = self.table.unique(column)
        return labels(sorted(c for c in cells if c is not None), [self.path] * len(cells), None).field

    def _undecoded(self, table: Any) -> Any:
        """Pictures as bytes or paths: they are decoded here, with care, and only where they are asked for."""
        if table is None:
            return None
        raw = library().Image(decode=False)
        for column in self.columns.values():
            if column.field.kind in PICTURES:
                table = table.cast_column(column.source, raw)
        return table

    # a source

    def _choose(self, part: Part) -> None:
        table = self._others if part == "validation" and self._others is not None else self.table
        if self.streaming:
            held_out = part == "validation"
            self._rows = self._first_rows(table) if held_out else self._stream(table)
        elif self._others is not None:
            self._rows = np.arange(len(table))
        else:
            self._rows = rows_of(part, [str(row).encode() for row in range(len(table))], self.validation)
        self._table = table

    def split(self, part: Part) -> HuggingfaceSource:
        """The rows to train on, or those held out. Of a stream, the first of the rows whose pictures' hash says so.

        Raises DataError where no row is left.
        """
        twin = copy.copy(self)
        twin._choose(part)
        if not isinstance(twin._rows, Stream) and not len(twin._rows):
            raise DataError(
                f"no row is left for {part}",
                hint="give more rows, or another share or split: data.validation",
                where=self.path,
            )
        return twin

    def info(self) -> Info:
        """The columns; a stream is endless."""
        count = None if isinstance(self._rows, Stream) else len(self._rows)
        info = self.table.info
        return Info(
            count, {name: c.field for name, c in self.columns.items()}, licence=info.license or "see the dataset"
        )

    def __getitem__(self, index: int) -> Sample:
        if isinstance(self._rows, np.ndarray):
            row = int(self._rows[index])
            return self._sample(cache(lambda: self._table[row]), f"{self.path}[{row}]")
        found = self._rows[index]
        return self._sample(lambda: found, f"{self.path}[{_mark(found[self.columns['image'].source])}]")

    def _sample(self, row: Any, name: str) -> Sample:
        pictures = {c.source for c in self.columns.values() if c.field.kind in PICTURES}

        @cache
        def ready() -> Row:
            return {column: self._file(value, name) if column in pictures else value for column, value in row().items()}

        return Sample(loaders(ready, self.columns, self.limits, name), name=name)

    def sizes(self) -> list[tuple[int, int]] | None:
        """Read from the pictures' headers; (1, 1) for one that cannot be read. None for a stream."""
        if not isinstance(self._rows, np.ndarray):
            return None
        column = self.columns["image"].source
        return [self._size(row[column]) for row in self._table.select_columns([column]).select(self._rows)]

    def _size(self, value: Any) -> tuple[int, int]:
        try:
            file = self._file(value, self.path)
            return (1, 1) if file is None else look(file.path, self.limits, content=file.content).size
        except BadSampleError:
            return (1, 1)

    def fingerprint(self) -> str:
        """Of the number of rows and the content of some of them, spread evenly. (The library's own changes with its version.)"""
        if not isinstance(self._rows, np.ndarray):
            return ""
        some = self._rows[np.linspace(0, len(self._rows) - 1, min(SAMPLED, len(self._rows))).astype(np.int64)]
        digest = hashlib.sha256(str(len(self._rows)).encode())
        for row in self._table.select(some):
            digest.update(repr(sorted(row.items())).encode(errors="replace"))
        return digest.hexdigest()

    def _file(self, value: Any, where: str) -> File | None:
        """An undecoded picture, {"bytes", "path"}; paths are relative to the file that names them."""
        content, path = (None, None) if value is None else (value.get("bytes"), value.get("path"))
        if content is not None:
            return File(content, path or where)
        if not path:
            return None
        if "://" in path:
            return File(fetched(path), path)
        here = os.path.expanduser(self.path)
        return File(None, os.path.join(here if os.path.isdir(here) else os.path.dirname(here), path))

    # streams

    def _stream(self, table: Any) -> Stream:
        if self.buffer:
            return Stream(self._buffered, length=ENDLESS, block=1, seed=self.seed)
        about = (table.info.splits or {}).get(str(table.split))
        known = about.num_examples if about is not None and not self.validation else None
        return Stream(self._pass, length=known or None, block=self.block, seed=self.seed)

    def _pass(self, number: int, skipped: int) -> Iterator[Row]:
        """One pass over the rows to train on: the shards in an order keyed by (seed, number)."""
        rows = _shards_shuffled(self.table, random.key(self.seed, "stream/pass", number) % 2**32)
        rows = rows.skip(skipped) if skipped and not self.validation else rows
        kept = (row for row in _each(rows) if not self._is_held_out(row))
        return islice(kept, skipped if self.validation else 0, None)

    def _buffered(self, number: int, skipped: int) -> Iterator[Row]:
        """Through the library's buffer, filled anew from a place near `skipped`: what was in it then is not there now."""
        seed = random.key(self.seed, "stream/buffer", number) % 2**32
        within = skipped % self.buffer  # so that data workers that begin near each other share a buffer
        rows = _shards_shuffled(self.table, seed).skip(skipped - within)
        rows = rows.shuffle(seed=seed, buffer_size=self.buffer)
        return islice((row for row in _each(rows) if not self._is_held_out(row)), within, None)

    def _is_held_out(self, row: Row) -> bool:
        return self.validation > 0 and self._share(row) < self.validation

    def _share(self, row: Row) -> float:
        """By the picture itself: a stream has no other name for a row, and a picture that is there twice stays on one side."""
        value = row[self.columns["image"].source] or {}
        return share(value.get("bytes") or str(value.get("path")).encode())

    def _first_rows(self, table: Any) -> list[Row]:
        if self._others is not None:
            return list(islice(_each(table), HELD_OUT))
        searched = islice(_each(table), HELD_OUT * SEARCHED)
        return list(islice((row for row in searched if self._is_held_out(row)), HELD_OUT))


def _shards_shuffled(table: Any, seed: int) -> Any:
    """The stream with its shards in another order, one read after the other; newer versions of the library would mix ten."""
    one = {"max_buffer_input_shards": 1}
    known = inspect.signature(table.shuffle).parameters
    return table.shuffle(seed=seed, buffer_size=1, **{name: value for name, value in one.items() if name in known})


def _each(table: Any) -> Iterator[Row]:
    """The rows of a stream. Not by its own iterator: in a data worker that gives the worker's share of the shards alone."""
    for batch in table.iter(batch_size=1):
        yield {column: values[0] for column, values in batch.items()}


def _mark(value: Any) -> str:
    """What tells a picture of a stream from others: its path, or a checksum."""
    value = value or {}
    return str(value.get("path") or f"{zlib.crc32(value.get('bytes') or b''):08x}")


def _kind(field: str, feature: Any) -> Kind:
    if field in ("image", "map", "label"):
        return field  # type: ignore[return-value]
    name = type(feature).__name__
    if name == "Image":
        return "image"
    if name == "ClassLabel":
        return "label"
    dtype = str(getattr(feature, "dtype", ""))
    if dtype.startswith(("string", "large_string")):
        return "text"
    return "number" if name == "Value" and dtype.startswith(("int", "uint", "float", "double")) else "other"
