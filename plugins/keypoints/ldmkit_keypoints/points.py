"""Points as people and data sets have them -> rows (point, x, y) that were looked at."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ldmkit.errors import LdmkitError, RecipeError, UsageError

HINT = 'points are {"left_eye": [0.4, 0.3], "nose": [0.5, 0.45]}: x and y in [0, 1]; one that is absent is left out, or null'
ROUNDING = 1e-4  # outside [0, 1] by no more than this is inside
Names = Sequence[str] | None


def from_user(value: Any, names: Names, count: int) -> Tensor:
    """JSON, a mapping of name to (x, y), or rows (name or number, x, y) -> rows (n, 3). Raises UsageError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UsageError(f"{value!r:.80} is no JSON: {error}", hint=HINT) from error
    if isinstance(value, Tensor):
        return checked(as_rows(value, UsageError), count, None, names, UsageError)
    if isinstance(value, Mapping):
        value = [(name, *_place(name, place)) for name, place in value.items() if place is not None]
    if not isinstance(value, list | tuple):
        raise UsageError(f"points are a mapping of name to (x, y), or a list, not {type(value).__name__}", hint=HINT)
    named = [_row(number, row, names, count) for number, row in enumerate(value, 1)]
    return checked(as_rows(named, UsageError), count, None, names, UsageError)


def _place(name: Any, place: Any) -> Sequence[Any]:
    if not isinstance(place, list | tuple) or len(place) != 2:
        raise UsageError(f"the point {name!r} lies at {place!r}; x and y are needed", hint=HINT)
    return place


def _row(number: int, row: Any, names: Names, count: int) -> list[float]:
    if not isinstance(row, list | tuple) or len(row) != 3:
        given = f"{len(row)} values" if isinstance(row, list | tuple) else type(row).__name__
        raise UsageError(f"point {number} has {given}; a name, x and y are needed", hint=HINT)
    if not all(isinstance(side, Real) and not isinstance(side, bool) for side in row[1:]):
        raise UsageError(f"point {number} lies at {list(row[1:])!r}; numbers in [0, 1] are needed", hint=HINT)
    return [float(_number(row[0], names, count)), float(row[1]), float(row[2])]


def _number(point: Any, names: Names, count: int) -> int:
    """The number of a point by its name or number."""
    if isinstance(point, str) and names is not None and point in names:
        return list(names).index(point)
    if isinstance(point, str):
        if names is None and point.isdecimal():
            return int(point)
        near = difflib.get_close_matches(point, names or (), n=1)
        known = f"the points are {some(names)}" if names else f"the {count} points have no names, only numbers"
        raise UsageError(f"there is no point {point!r}; {known}", hint=f"did you mean {near[0]!r}?" if near else None)
    if isinstance(point, Real) and float(point).is_integer():
        return int(float(point))
    raise UsageError(f"{point!r} is no point; give a name or a whole number", hint=HINT)


def as_rows(points: Any, error: type[LdmkitError]) -> Tensor:
    """Rows of three numbers as a tensor (n, 3)."""
    try:
        found = torch.as_tensor(points, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as cause:
        raise error(f"the keypoints are no numbers: {cause}", hint=HINT) from cause
    if found.numel() == 0:
        return torch.zeros(0, 3)
    if found.ndim != 2 or found.shape[1] != 3:
        raise error(f"keypoints are (n, 3); given: {tuple(found.shape)}", hint=HINT)
    return found


def checked(points: Tensor, count: int, theirs: Names, ours: Names, error: type[LdmkitError]) -> Tensor:
    """The rows in the order of their points, numbered as ours where both name them. Raises `error` for the first that is none."""
    rows = []
    for kind, x, y in points.tolist():
        if not bool(torch.isfinite(torch.tensor([kind, x, y])).all()):
            raise error(
                f"a keypoint has values that are not finite: {[kind, x, y]}", hint="leave out those that are absent"
            )
        if not kind.is_integer() or not 0 <= kind < (len(theirs) if theirs else count):
            raise error(f"the keypoint {kind:g} is none: there are {count}, numbered from 0")
        known = theirs or ours or ()
        name = known[int(kind)] if int(kind) < len(known) else f"{int(kind)}"
        if not all(-ROUNDING <= side <= 1 + ROUNDING for side in (x, y)):
            raise error(
                f"the keypoint {name} lies at ({x:g}, {y:g}), outside [0, 1]",
                hint="x and y are shares of the image's width and height, not pixels: divide by them",
            )
        if theirs and ours and theirs[int(kind)] not in ours:
            raise error(f"the keypoint {name!r} is none of {some(ours)}")
        number = float(list(ours).index(theirs[int(kind)])) if theirs and ours else kind
        rows.append([number, min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)])
    return torch.tensor(sorted(rows)).reshape(-1, 3)


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once. Raises RecipeError."""
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise RecipeError(f"points names {', '.join(map(repr, twice))} more than once")
    return tuple(names)


def some(names: Sequence[str], most: int = 12) -> str:
    """Names in a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
