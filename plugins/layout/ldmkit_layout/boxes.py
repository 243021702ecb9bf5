"""Boxes as people and data sets have them -> rows (class, left, top, right, bottom) that were looked at."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ldmkit.data import Field
from ldmkit.errors import DataError, LdmkitError, RecipeError, UsageError

HINT = 'a layout is [["cat", 0.1, 0.2, 0.5, 0.9], ...]: class, left, top, right, bottom, sides in [0, 1]'
ROUNDING = 1e-4  # outside [0, 1] by no more than this is inside
Names = Sequence[str] | None


def from_user(value: Any, names: Names, count: int) -> Tensor:
    """JSON, or a list of boxes, each a class (name or number) and four sides -> rows (n, 5). Raises UsageError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UsageError(f"{value!r:.80} is no JSON: {error}", hint=HINT) from error
    if isinstance(value, Tensor):
        return checked(as_rows(value, UsageError), count, None, None, UsageError)
    if not isinstance(value, list | tuple):
        raise UsageError(f"a layout is a list of boxes, not {type(value).__name__}", hint=HINT)
    named = [_row(number, box, names, count) for number, box in enumerate(value, 1)]
    return checked(as_rows(named, UsageError), count, None, None, UsageError)


def _row(number: int, box: Any, names: Names, count: int) -> list[float]:
    if not isinstance(box, list | tuple) or len(box) != 5:
        given = f"{len(box)} values" if isinstance(box, list | tuple) else type(box).__name__
        raise UsageError(f"box {number} has {given}; five are needed", hint=HINT)
    kind, sides = box[0], box[1:]
    if not all(isinstance(side, Real) and not isinstance(side, bool) for side in sides):
        raise UsageError(f"box {number} has the sides {list(sides)!r}; numbers in [0, 1] are needed", hint=HINT)
    return [float(_number(number, kind, names, count)), *map(float, sides)]


def _number(number: int, kind: Any, names: Names, count: int) -> int:
    """The number of a class by its name or number."""
    if isinstance(kind, str) and names is not None and kind in names:
        return list(names).index(kind)
    if isinstance(kind, str):
        if names is None and kind.isdecimal():
            kind = int(kind)
        else:
            near = difflib.get_close_matches(kind, names or (), n=1)
            known = (
                f"; the classes are {some(names)}" if names else f"; the {count} classes have no names, only numbers"
            )
            raise UsageError(
                f"box {number} is of the class {kind!r}, which there is not{known}",
                hint=f"did you mean {near[0]!r}?" if near else None,
            )
    if isinstance(kind, Real) and float(kind).is_integer():
        return int(float(kind))
    raise UsageError(f"box {number} is of the class {kind!r}; give a name or a whole number", hint=HINT)


def as_rows(boxes: Any, error: type[LdmkitError]) -> Tensor:
    """Rows of five numbers as a tensor (n, 5)."""
    try:
        found = torch.as_tensor(boxes, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as cause:
        raise error(f"the boxes are no numbers: {cause}", hint=HINT) from cause
    if found.numel() == 0:
        return torch.zeros(0, 5)
    if found.ndim != 2 or found.shape[1] != 5:
        raise error(f"boxes are (n, 5); given: {tuple(found.shape)}", hint=HINT)
    return found


def checked(boxes: Tensor, count: int, theirs: Names, ours: Names, error: type[LdmkitError]) -> Tensor:
    """The rows, their classes numbered as ours where both name them. Raises `error` for the first that is no box."""
    for number, (kind, left, top, right, bottom) in enumerate(boxes.tolist(), 1):
        sides = [left, top, right, bottom]
        if not bool(torch.isfinite(boxes[number - 1]).all()):
            raise error(f"box {number} has values that are not finite: {[kind, *sides]}", hint=HINT)
        if not all(-ROUNDING <= side <= 1 + ROUNDING for side in sides):
            raise error(
                f"box {number} has the sides {_listed(sides)}, outside [0, 1]",
                hint="sides are shares of the image's width and height, not pixels: divide by them",
            )
        if not (left < right and top < bottom):
            raise error(
                f"box {number} has the sides {_listed(sides)}: left < right and top < bottom are needed",
                hint="sides are left, top, right, bottom (not x, y, width, height)",
            )
        if not kind.is_integer() or not 0 <= kind < (len(theirs) if theirs else count):
            raise error(f"box {number} is of the class {kind:g}; classes are 0 to {count - 1}")
        if theirs and ours and theirs[int(kind)] not in ours:
            raise error(f"box {number} is of the class {theirs[int(kind)]!r}; the classes are {some(ours)}")
    out = boxes.clone()
    out[:, 1:] = out[:, 1:].clamp(0, 1)
    if theirs and ours:
        out[:, 0] = torch.tensor([float(list(ours).index(theirs[int(kind)])) for kind in boxes[:, 0]]).reshape(-1)
    return out


def ordered(boxes: Tensor, least: float, most: int) -> Tensor:
    """The `most` largest of those with an area of at least `least`, the largest first; among equals by class and place."""
    areas = (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
    keys = sorted((-area, *row) for area, row in zip(areas.tolist(), boxes.tolist(), strict=True) if area >= least)
    return torch.tensor([row[1:] for row in keys[:most]]).reshape(-1, 5)


def check_known(classes: int | list[str], known: Field) -> None:
    """Raises `DataError` for a class that the data have and the recipe does not."""
    names = [] if isinstance(classes, int) else classes
    count = classes if isinstance(classes, int) else len(classes)
    if names and known.names is not None and (missing := [name for name in known.names if name not in names]):
        raise DataError(
            f"the data have boxes of the classes {some(missing)}, and `classes` lists {some(names)}",
            hint="add them, or leave `classes` out: it is learned from the data",
        )
    if (not names or known.names is None) and known.classes is not None and known.classes > count:
        raise DataError(
            f"the data have {known.classes} classes of boxes, and `classes` says {count}", hint="leave `classes` out"
        )


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once. Raises RecipeError."""
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise RecipeError(f"classes names {', '.join(map(repr, twice))} more than once")
    return tuple(names)


def some(names: Sequence[str], most: int = 12) -> str:
    """Names in a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _listed(sides: Sequence[float]) -> str:
    return ", ".join(f"{side:g}" for side in sides)
