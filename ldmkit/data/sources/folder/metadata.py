"""Metadata files: what is known about the images of a folder (the Hugging Face ImageFolder convention, and its neighbours).

Every row has `file_name`, relative to the metadata file, and any other columns: `label` (a class), texts, numbers,
`<name>_file_name` (another image) and `objects: {"bbox": [[x, y, width, height], ...], "categories": [...]}` in pixels.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldmkit.errors import DataError
from ldmkit.images.files import printable

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.json", "metadata.parquet", "metadata.tsv")
FILE_COLUMNS = (
    "file_name",
    "filename",
    "file",
    "image",
    "image_file",
    "image_path",
    "path",
    "img",
)  # the first is the standard's
DELIMITERS = ",;\t|"
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True)
class Row:
    """One row: where it stands, the image it is about (relative to the root), the other columns."""

    where: str  # file:line
    picture: str
    values: Mapping[str, Any]
    folder: str = ""  # of the metadata file, below the root: what its paths are relative to


def read_rows(root: str, relative: str, *, encoding: str = "utf-8") -> list[Row]:
    """The rows of one metadata file, or a `DataError` that names file and line."""
    folder = posixpath.dirname(relative)
    found = tables(os.path.join(root, relative), encoding)
    return [Row(where, _picture(root, folder, values, where), values, folder) for where, values in found]


def tables(path: str, encoding: str = "utf-8") -> list[tuple[str, dict[str, Any]]]:
    """The rows of a file as (file:line, column -> value), whatever its format. Raises `DataError`."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".parquet":
        return _parquet(path)
    text = _text(path, encoding)
    if suffix == ".json":
        return _json(text, path)
    return _csv(text, path) if suffix in (".csv", ".tsv") else _jsonl(text, path)


def names_images(path: str, pictures: Mapping[str, str], encoding: str = "utf-8") -> bool:
    """Whether a file that is not called metadata is a table that names images of `pictures` (by stem -> path) all the same."""
    try:
        rows = tables(path, encoding)
    except (DataError, OSError):
        return False
    cells = [values.get(column) for _, values in rows[:20] if (column := file_column(values)) is not None]
    stems = {posixpath.splitext(posixpath.basename(picture))[0] for picture in pictures.values()}
    named = [
        c
        for c in cells
        if isinstance(c, str) and posixpath.splitext(posixpath.basename(c.replace("\\", "/")))[0] in stems
    ]
    return bool(cells) and 2 * len(named) > len(cells)


def file_column(values: Mapping[str, Any]) -> str | None:
    """The column that names the image: `file_name`, else the only other one with a usual name."""
    if FILE_COLUMNS[0] in values:
        return FILE_COLUMNS[0]
    found = [name for name in FILE_COLUMNS if isinstance(values.get(name), str)]
    return found[0] if len(found) == 1 else None


def _text(path: str, encoding: str) -> str:
    with open(path, "rb") as file:
        raw = file.read()
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if raw.startswith(mark)), None)
    try:
        return raw.decode(marked or encoding)
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


def _json(text: str, path: str) -> list[tuple[str, dict[str, Any]]]:
    """A list of rows, or an object of file name -> row, or of file name -> caption."""
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=printable(path)) from error
    if isinstance(loaded, dict) and all(isinstance(value, dict | str) for value in loaded.values()):
        loaded = [
            {"file_name": name, **(value if isinstance(value, dict) else {"caption": value})}
            for name, value in loaded.items()
        ]
    if not isinstance(loaded, list) or not all(isinstance(values, dict) for values in loaded):
        raise DataError("metadata is a list of objects, or an object of file name -> object", where=printable(path))
    return [(f"{printable(path)}, row {number}", values) for number, values in enumerate(loaded, 1)]


def _csv(text: str, path: str) -> list[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    header_line = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=header_line.count) if any(map(header_line.count, DELIMITERS)) else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True, delimiter=delimiter)
    rows = []
    try:
        header = reader.fieldnames or []
        if len(set(header)) < len(header):
            raise DataError(f"a column is there twice: {', '.join(header)}", where=f"{printable(path)}:1")
        for values in reader:
            where = f"{printable(path)}:{reader.line_num}"
            if "" in values:
                raise DataError(
                    f"more cells than the {len(header)} columns",
                    hint=f"quote texts that hold {delimiter!r}",
                    where=where,
                )
            rows.append((where, {name.strip(): value if value != "" else None for name, value in values.items()}))
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", where=f"{printable(path)}:{reader.line_num}") from error
    return rows


def _parquet(path: str) -> list[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]  # it has no stubs
    except ImportError as error:
        raise DataError(
            "a parquet file needs a package that is not installed",
            hint='pip install "ldmkit[datasets]"',
            where=printable(path),
        ) from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except Exception as error:  # pyarrow's errors have no common base but this
        raise DataError(f"cannot be read as parquet: {error}", where=printable(path)) from error
    return [(f"{printable(path)}, row {number}", dict(values)) for number, values in enumerate(rows, 1)]


def _picture(root: str, folder: str, values: Mapping[str, Any], where: str) -> str:
    column = file_column(values)
    name = values.get(column) if column is not None else None
    if not isinstance(name, str) or not name:
        raise DataError(
            f"a row needs a file_name; this one has {', '.join(map(repr, values)) or 'nothing'}",
            hint="file_name is the image's path, relative to the metadata file",
            where=where,
        )
    return relative_path(root, folder, name, where)


def relative_path(root: str, folder: str, name: str, where: str) -> str:
    """`name` beside the metadata file in `folder`, relative to the root; never outside it.

    An absolute path inside the root is taken, and a backslash where no file is called so. Raises DataError for a path
    outside it.
    """
    if "\\" in name and not os.path.lexists(os.path.join(root, folder, name)):
        name = name.replace("\\", "/")
    if os.path.isabs(name):
        inside = os.path.relpath(os.path.realpath(name), os.path.realpath(root)).replace(os.sep, "/")
        name = posixpath.relpath(inside, folder or ".") if not inside.startswith("..") else name
    path = posixpath.normpath(posixpath.join(folder, name))
    if posixpath.isabs(path) or path == ".." or path.startswith("../"):
        raise DataError(
            f"file_name {name!r} leads out of the folder",
            hint="file names are relative to the metadata file, or absolute paths inside the folder",
            where=where,
        )
    return path
