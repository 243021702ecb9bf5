"""Columns of metadata -> the fields of a folder's samples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldmkit.data.sources.folder.metadata import FILE_COLUMNS, Row
from ldmkit.errors import DataError
from ldmkit.fields import Field

CAPTIONS = ("caption", "text", "prompt")  # the first is what a text is read from, the others stand in for it
PARTNER = "_file_name"  # ends the name of a column that names another image


@dataclass(frozen=True)
class Column:
    """A field made of a column: what it holds, and its value in each row (None = absent)."""

    field: Field
    values: Sequence[Any]


def columns(rows: Sequence[Row | None], classes: Sequence[str] | None) -> dict[str, Column]:
    """Every column of the rows (None: a picture without a row), `label` and `objects` included, as fields.

    Raises DataError for a label that is no class, and for `objects` of another form.
    """
    names = dict.fromkeys(name for row in rows if row is not None for name in row.values if name not in FILE_COLUMNS)
    out = {}
    for name in names:
        cells = [None if row is None else row.values.get(name) for row in rows]
        if name == "label":
            out[name] = labels(cells, [row.where if row else "" for row in rows], classes)
        elif name.endswith(PARTNER):
            out[name.removesuffix(PARTNER)] = Column(Field("image"), cells)
        elif name in CAPTIONS:
            out[name] = captions(cells)
        elif name == "keypoints":
            out[name] = Column(Field("keypoints"), cells)
        elif name == "objects":
            out["boxes"] = _objects(cells, rows, classes)
        else:
            out[name] = _plain(cells)
    return out


def captions(cells: Sequence[Any]) -> Column:
    """Texts, numbers as texts (a CSV of years), and lists of texts: a row with several has one of them drawn for each view."""
    if any(cell is not None and not isinstance(cell, str | int | float | list | tuple) for cell in cells):
        return _plain(cells)
    return Column(Field("text"), [_caption(cell) for cell in cells])


def _caption(cell: Any) -> Any:
    if isinstance(cell, list | tuple):
        texts = [clean(str(text)) for text in cell if text is not None]
        return None if not texts else texts[0] if len(texts) == 1 else texts
    return None if cell is None else clean(cell if isinstance(cell, str) else f"{cell}")


def stand_in(columns: Mapping[str, Column]) -> str | None:
    """The one text column that is a caption under another usual name, where there is no `caption`."""
    found = [name for name in CAPTIONS if name in columns and columns[name].field.kind == "text"]
    return found[0] if len(found) == 1 and found[0] != CAPTIONS[0] and CAPTIONS[0] not in columns else None


def natural(text: str) -> tuple[Any, ...]:
    """A key that sorts numbers inside names by their value: 2 before 11."""
    parts = re.split(r"([0-9]+)", text)
    return (*((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p), (2, 0, text))


def _plain(cells: Sequence[Any]) -> Column:
    there = [cell for cell in cells if cell is not None]
    numbers = [number(cell) for cell in there]
    if there and all(number is not None for number in numbers):
        return Column(Field("number"), [None if cell is None else number(cell) for cell in cells])
    if all(isinstance(cell, str) for cell in there):
        return Column(Field("text"), [None if cell is None else clean(cell) for cell in cells])
    return Column(Field("other"), cells)


def number(cell: Any) -> float | None:
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
    """Class ids from integers or names; checked here, once: on a GPU a wrong one would be an assertion inside a kernel.

    Raises DataError naming the first label that is no class.
    """
    there = [cell for cell in cells if cell is not None]
    numbers = all(isinstance(cell, int) or (isinstance(cell, str) and _digits(cell)) for cell in there)
    if there and numbers and not (classes and set(map(str, there)) <= set(classes)):
        return _numbered(cells, where, classes)
    for cell, place in zip(cells, where, strict=True):
        if cell is not None and (not isinstance(cell, str) or not cell):
            raise DataError(f"a label is a class id (0, 1, ...) or a name; this one is {cell!r}", where=place or None)
        if cell is not None and classes is not None and cell not in classes:
            raise DataError(f"the label {cell!r} is not one of the classes {', '.join(classes)}", where=place or None)
    names = tuple(classes) if classes is not None else tuple(sorted(set(there), key=natural))
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
            isinstance(box, list) and len(box) == 4 and all(number(side) is not None for side in box) for box in boxes
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
