"""A column `keypoints` of metadata: named points in pixels, some of them absent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ldmkit.data.sources.folder.index import FolderIndex
from ldmkit.data.sources.folder.row_fields import Column, natural, number
from ldmkit.errors import DataError
from ldmkit.fields import Field

NAME = "keypoints"
FORM = 'keypoints are {"left_eye": [x, y], "nose": null}, or [["left_eye", x, y], ...]: pixels, and null where one is absent'
Point = tuple[str, float, float]


def relate(index: FolderIndex) -> None:
    """The column as rows (point, x, y) in shares of the image's sides; points outside their image are left out, and said."""
    column, lost = index.columns[NAME], 0
    read = []
    for cell, entry in zip(column.values, index.entries, strict=True):
        where = "" if entry.row is None else entry.row.where
        read.append(None if cell is None else list(_points(cell, where)))
    names = tuple(sorted({name for points in read for name, _, _ in points or ()}, key=natural))
    values: list[Any] = []
    for points, entry in zip(read, index.entries, strict=True):
        if points is None:
            values.append(None)
            continue
        height, width = entry.look.size
        rows = np.array([(names.index(name), x / width, y / height) for name, x, y in points]).reshape(-1, 3)
        inside = ((rows[:, 1:] >= 0) & (rows[:, 1:] <= 1)).all(1)
        lost += int((~inside).sum())
        values.append(rows[inside].astype(np.float32))
    index.columns[NAME] = Column(Field("keypoints", len(names), names), values)
    if lost:
        index.notes.append(f"{lost} keypoints outside their image left out")


def _points(cell: Any, where: str) -> Iterator[Point]:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError as error:
            raise DataError(f"keypoints {cell!r:.60} are no JSON: {error}", hint=FORM, where=where or None) from error
    if isinstance(cell, Mapping):
        cell = [(name, *_listed(place)) for name, place in cell.items() if place is not None]
    if not isinstance(cell, Sequence):
        raise DataError(f"keypoints are {type(cell).__name__}", hint=FORM, where=where or None)
    for row in cell:
        yield from _point(row, where)


def _listed(place: Any) -> Sequence[Any]:
    return place if isinstance(place, list | tuple) else (place,)


def _point(row: Any, where: str) -> Iterator[Point]:
    """One point; none where a third number says, as COCO does with 0, that it is not in the image."""
    right = isinstance(row, list | tuple) and len(row) in (3, 4) and isinstance(row[0], str)
    places = [number(value) for value in row[1:]] if right else []
    if not right or any(value is None for value in places):
        raise DataError(f"a keypoint is {row!r:.60}", hint=FORM, where=where or None)
    if len(row) == 3 or places[2]:
        x, y = places[:2]
        assert x is not None
        assert y is not None
        yield row[0], x, y
