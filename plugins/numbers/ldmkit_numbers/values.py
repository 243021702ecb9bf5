"""Numbers as tables and people hold them -> one list, None where a value is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ldmkit.errors import LdmkitError
from ldmkit.messages import nearest

Row = list[float | None]


def opened(value: Any) -> Any:
    """JSON text as what it says, arrays as lists; the rest as it is."""
    if isinstance(value, Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def row(value: Any, columns: Sequence[str], error: type[LdmkitError], field: str) -> Row:
    """A number, a list in the order of `columns`, or a mapping by their names; None, NaN and empty cells are missing.

    Raises `error` for an unknown column, another count, a value that is no number, and an infinite one.
    """
    value = opened(value)
    if isinstance(value, Mapping):
        if unknown := [name for name in value if name not in columns]:
            near = nearest(str(unknown[0]), columns)
            raise error(
                f"{field}: there is no column {unknown[0]!r}; the columns are {', '.join(columns)}",
                hint=f"did you mean {near!r}?" if near else None,
            )
        value = [value.get(name) for name in columns]
    if not isinstance(value, list | tuple):
        value = [value]
    if len(value) != len(columns):
        raise error(
            f"{field}: {len(value)} numbers are given; the {len(columns)} columns are {', '.join(columns)}",
            hint="give a mapping of names to numbers, or one value a column, null where it is missing",
        )
    return [number(one, name, error, field) for one, name in zip(value, columns, strict=True)]


def number(value: Any, column: str, error: type[LdmkitError], field: str) -> float | None:
    """A finite number, or None where it is missing."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        found = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.inf
    if math.isinf(found):
        raise error(
            f"{field}: {column} is {value!r}, and a finite number is needed",
            hint="where it is not known, leave it out (null, an empty cell)",
        )
    return None if math.isnan(found) else found
