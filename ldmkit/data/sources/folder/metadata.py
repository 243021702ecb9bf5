"""metadata.jsonl and metadata.csv: what is known about the pictures of a folder (the Hugging Face ImageFolder convention).

Every row has `file_name`, relative to the metadata file, and any other columns: `label` (a class), texts, numbers,
`<name>_file_name` (another picture) and `objects: {"bbox": [[x, y, width, height], ...], "categories": [...]}` in pixels.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldmkit.errors import DataError
from ldmkit.fields import Field
from ldmkit.images.files import printable

NAMES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Row:
    """One row: where it stands, the picture it is about (relative to the root), the other columns."""

    where: str  # file:line
    picture: str
    values: Mapping[str, Any]
    folder: str = ""  # of the metadata file, below the root: what its paths are relative to


def read_rows(root: str, relative: str, *, encoding: str = "utf-8") -> list[Row]:
    """The rows of one metadata file, or a `DataError` that names file and line."""
    path = os.path.join(root, relative)
    text = _text(path, encoding)
    rows = _jsonl(text, path) if path.endswith(".jsonl") else _csv(text, path)
    folder = posixpath.dirname(relative)
    return [Row(where, _picture(folder, values, where), values, folder) for where, values in rows]


def _text(path: str, encoding: str) -> str:
    with open(path, "rb") as file:
        raw = file.read()
    try:
        return raw.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.start} ({raw[error.start]:#04x}) is not {encoding}",
            hint="save the file as UTF-8, or say what it is, for example data.encoding: latin-1",
            where=printable(path),
        ) from error
    except LookupError as error:
        raise DataError(f"there is no encoding {encoding!r}", hint="for example utf-8, latin-1, cp1252") from error


def _jsonl(text: str, path: str) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: it also splits at characters inside texts
        if not line.strip():
            continue
        where = f"{printable(path)}:{number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not a line of JSON: {error}", where=where) from error
        if not isinstance(values, dict):
            raise DataError(f"a row is an object {{...}}; this one is {type(values).__name__}", where=where)
        rows.append((where, values))
    return rows


def _csv(text: str, path: str) -> list[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    rows = []
    try:
        header = reader.fieldnames or []
        if len(set(header)) < len(header):
            raise DataError(f"a column is there twice: {', '.join(header)}", where=f"{printable(path)}:1")
        for values in reader:
            where = f"{printable(path)}:{reader.line_num}"
            if "" in values:
                raise DataError(
                    f"more cells than the {len(header)} columns", hint="quote texts that hold commas", where=where
                )
            rows.append((where, {name: value if value != "" else None for name, value in values.items()}))
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", where=f"{printable(path)}:{reader.line_num}") from error
    return rows


def _picture(folder: str, values: Mapping[str, Any], where: str) -> str:
    name = values.get("file_name")
    if not isinstance(name, str) or not name:
        raise DataError(
            f"a row needs a file_name; this one has {', '.join(map(repr, values)) or 'nothing'}",
            hint="file_name is the picture's path, relative to the metadata file",
            where=where,
        )
    return relative_path(folder, name, where)


def relative_path(folder: str, name: str, where: str) -> str:
    """`name` beside the metadata file in `folder`, relative to the root; never outside it."""
    path = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/") if os.sep == "\\" else name))
    if posixpath.isabs(path) or path == ".." or path.startswith("../"):
        raise DataError(f"file_name {name!r} leads out of the folder", where=where)
    return path


# Columns -> fields


@dataclass(frozen=True)
class Column:
    """A field made of a column: what it holds, and its value in each row (None = absent)."""

    field: Field
    values: Sequence[Any]


def columns(rows: Sequence[Row | None], classes: Sequence[str] | None) -> dict[str, Column]:
    """Every column of the rows (None: a picture without a row), `label` and `objects` included, as fields."""
    names = dict.fromkeys(name for row in rows if row is not None for name in row.values if name != "file_name")
    out = {}
    for name in names:
        cells = [None if row is None else row.values.get(name) for row in rows]
        if name == "label":
            out[name] = labels(cells, [row.where if row else "" for row in rows], classes)
        elif name.endswith("_file_name"):
            out[name.removesuffix("_file_name")] = Column(Field("image"), cells)
        elif name == "objects":
            out["boxes"] = _objects(cells, rows, classes)
        else:
            out[name] = _plain(cells)
    return out


def _plain(cells: Sequence[Any]) -> Column:
    there = [cell for cell in cells if cell is not None]
    numbers = [_number(cell) for cell in there]
    if there and all(number is not None for number in numbers):
        return Column(Field("number"), [None if cell is None else _number(cell) for cell in cells])
    if all(isinstance(cell, str) for cell in there):
        return Column(Field("text"), [None if cell is None else clean(cell) for cell in cells])
    return Column(Field("other"), cells)


def _number(cell: Any) -> float | None:
    """A cell as a finite number: CSV knows only texts."""
    try:
        number = float(cell) if isinstance(cell, (int, float, str)) else None
    except ValueError:
        return None
    return number if number is not None and abs(number) != float("inf") and number == number else None


def clean(text: str) -> str:
    """A text that every tokenizer can take: no NUL, no half of a surrogate pair."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")


def labels(cells: Sequence[Any], where: Sequence[str], classes: Sequence[str] | None) -> Column:
    """Class ids from integers or names; checked here, once: on a GPU a wrong one would be an assertion inside a kernel."""
    there = [cell for cell in cells if cell is not None]
    numbers = all(isinstance(cell, int) or (isinstance(cell, str) and _digits(cell)) for cell in there)
    if there and numbers and not (classes and set(map(str, there)) <= set(classes)):
        return _numbered(cells, where, classes)
    for cell, place in zip(cells, where, strict=True):
        if cell is not None and (not isinstance(cell, str) or not cell):
            raise DataError(f"a label is a class id (0, 1, ...) or a name; this one is {cell!r}", where=place or None)
        if cell is not None and classes is not None and cell not in classes:
            raise DataError(f"the label {cell!r} is not one of the classes {', '.join(classes)}", where=place or None)
    names = tuple(classes) if classes is not None else tuple(sorted(set(there)))
    ids = {name: index for index, name in enumerate(names)}
    return Column(Field("label", len(names), names), [None if cell is None else ids[cell] for cell in cells])


def _digits(text: str) -> bool:
    return text.removeprefix("-").isascii() and text.removeprefix("-").isdigit()


def _numbered(cells: Sequence[Any], where: Sequence[str], classes: Sequence[str] | None) -> Column:
    count = len(classes) if classes else max(int(cell) for cell in cells if cell is not None) + 1
    for cell, place in zip(cells, where, strict=True):
        if isinstance(cell, bool) or (cell is not None and not 0 <= int(cell) < count):
            allowed = f"0 to {count - 1}" if count > 0 else "0 or more"
            raise DataError(f"the label {cell!r} is not a class id; allowed: {allowed}", where=place or None)
    ids = [None if cell is None else int(cell) for cell in cells]
    return Column(Field("label", count, tuple(classes) if classes else None), ids)


def _objects(cells: Sequence[Any], rows: Sequence[Row | None], classes: Sequence[str] | None) -> Column:
    """COCO boxes -> rows (class, x, y, width, height), still in pixels; `FolderSource` knows the picture's size."""
    categories: list[Any] = []
    places: list[str] = []
    for cell, row in zip(cells, rows, strict=True):
        if cell is None or row is None:
            continue
        boxes = cell.get("bbox") if isinstance(cell, dict) else None
        own = cell.get("categories", cell.get("category")) if isinstance(cell, dict) else None
        right = isinstance(boxes, list) and all(
            isinstance(box, list) and len(box) == 4 and all(_number(side) is not None for side in box) for box in boxes
        )
        if not right or not isinstance(own, list) or len(own) != len(boxes or ()):
            raise DataError(
                'objects is {"bbox": [[x, y, width, height], ...], "categories": [...]}, as many of each',
                where=row.where,
            )
        categories += own
        places += [row.where] * len(own)
    column = labels(categories, places, classes)
    ids = iter(column.values)
    values = [None if c is None else [(next(ids), *map(float, box)) for box in c["bbox"]] for c in cells]
    return Column(Field("boxes", column.field.classes, column.field.names), values)
