"""Rows of a table with pictures in it (`huggingface`, `webdataset`) -> samples: which column is which field."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ldmkit.data.sources.folder.row_fields import clean
from ldmkit.errors import DataError
from ldmkit.fields import Field, Kind
from ldmkit.images.files import BadSampleError, Limits, printable, read, read_ids
from ldmkit.images.label_map import IGNORED
from ldmkit.images.pixels import to_ids

PICTURES: tuple[Kind, ...] = ("image", "map")


@dataclass(frozen=True)
class Column:
    """A field and the column it is read from."""

    source: str
    field: Field


@dataclass(frozen=True)
class File:
    """A picture inside a row: its bytes, or the path where it lies."""

    content: bytes | None
    path: str


class Row(Protocol):
    """A row's columns: `File` for pictures, else plain values; None is absent."""

    def get(self, name: str, /) -> Any: ...


def described(field: str, kind: Kind, classes: Mapping[str, int | Sequence[str]]) -> Field:
    """A field with what the user said of its classes: a number, or names."""
    given = classes.get(field)
    if given is None:
        return Field(kind)
    names = None if isinstance(given, int) else tuple(given)
    return Field(kind, given if isinstance(given, int) else len(given), names)


def chosen(columns: Mapping[str, str] | None, there: Sequence[str], usual: Mapping[str, str]) -> dict[str, str]:
    """field -> column: what the user said, and what is there under its own name (or, `usual`, another one).

    Raises `DataError` for a column that is not there.
    """
    given = dict(columns or {})
    if wrong := [f"{field}: {column}" for field, column in given.items() if column not in there]:
        raise DataError(
            f"columns names {', '.join(wrong)}, and there are {', '.join(map(repr, there)) or 'none'}",
            hint="columns maps fields to columns: columns: {image: picture, caption: title}",
        )
    taken = set(given.values())
    for field, column in usual.items():
        if field not in given and column not in taken:
            given[field] = column
            taken.add(column)
    return given | {column: column for column in there if column not in taken and column not in given}


def loaders(
    row: Callable[[], Row], columns: Mapping[str, Column], limits: Limits, where: str
) -> dict[str, Callable[[], Any]]:
    """field -> what loads it."""
    return {name: partial(_load, name, column, row, limits, where) for name, column in columns.items()}


def _load(name: str, column: Column, row: Callable[[], Row], limits: Limits, where: str) -> Any:
    value, field = row().get(column.source), column.field
    if value is None and name == "image":
        raise BadSampleError(where, f"has no picture ({column.source})")
    if value is None:
        return None
    if field.kind == "image":
        return _picture(value, limits)
    if field.kind == "map":
        return _map(value, field, limits, where)
    if field.kind == "label":
        return _label(value, field, name, where)
    if field.kind == "text":
        return clean(value) if isinstance(value, str) else str(value)
    return float(value) if field.kind == "number" else value


def _picture(value: Any, limits: Limits) -> Image.Image:
    assert isinstance(value, File)
    return read(value.path, limits, value.content)


def _map(value: Any, field: Field, limits: Limits, where: str) -> Any:
    if isinstance(value, File):
        value = read_ids(value.path, Limits(limits.max_pixels), value.content)
    ids = to_ids(value)
    wrong = ids[(ids >= (field.classes or 0)) & (ids != IGNORED) | (ids < 0)]
    if wrong.size:
        raise DataError(
            f"the map holds the id {int(wrong.flat[0])} ({wrong.size} pixels out of range); allowed: 0 to "
            f"{(field.classes or 0) - 1}, and {IGNORED} for unlabelled",
            hint="give the right number of data.classes, or fix the map",
            where=printable(where),
        )
    return ids


def _label(value: Any, field: Field, name: str, where: str) -> int:
    if isinstance(value, str) and field.names is not None and value in field.names:
        return field.names.index(value)
    try:
        label = int(value)
        if isinstance(value, bool) or label != float(value):
            raise ValueError
    except (TypeError, ValueError):
        label = -1
    if not 0 <= label < (field.classes or 0):
        known = f": {', '.join(field.names[:20])}" if field.names else ""
        raise DataError(
            f"the {name} {value!r} is none of the {field.classes} classes{known}",
            hint=f"give the classes: data.classes: {{{name}: 10}}, or their names in the order of their ids",
            where=printable(where),
        )
    return label


def decoded(content: bytes, extension: str, where: str) -> Any:
    """A file that is no picture as a value, by its extension: text, a class, JSON, an array; raises `BadSampleError`."""
    import json

    try:
        if extension in ("txt", "text", "caption"):
            return content.decode("utf-8-sig").strip()
        if extension in ("cls", "cls2", "class", "id", "index"):
            text = content.decode("utf-8-sig").strip()
            return int(text) if text.lstrip("-").isdigit() else text
        if extension == "json" or extension.endswith(".json"):
            return json.loads(content)
        if extension == "npy" or extension.endswith(".npy"):
            return np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BadSampleError(where, f"cannot be read as {extension}: {error}") from error
    return content
