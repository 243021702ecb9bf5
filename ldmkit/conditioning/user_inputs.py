"""What a person gives to `sample` -> one prepared row an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ldmkit.conditioning.conditioner_set import ConditionerSet
from ldmkit.conditioning.types import Tensors
from ldmkit.errors import LdmkitError, UsageError

Values = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
Prepared = list[dict[str, Tensors | None]]


def rows(values: Values, count: int | None, conditioners: ConditionerSet | None = None) -> list[Mapping[str, Any]]:
    """One mapping slot -> value an image.

    `values` is a sequence of such mappings, one an image, or one mapping, in which a `torch.Tensor` is a batch with its rows
    in the first dimension; a list, a tuple or a numpy array that holds many values (`Conditioner.many`) has one an image;
    anything else is one value, repeated `count` times (default 1). Where lists have fewer values than `count` images, they are
    taken again from the beginning, if `count` is a multiple. Raises `UsageError` where the numbers of rows differ.
    """
    if values is None:
        return [{} for _ in range(_count(count, None, "nothing"))]
    if not isinstance(values, Mapping):
        given: Any = values  # whatever its annotation says
        if isinstance(given, str) or not all(isinstance(row, Mapping) for row in values):
            raise UsageError(
                f"the conditions are {_named(values)}",
                hint="give a mapping, {'text': 'a red circle'}, or a list of them, one per image",
            )
        _count(count, len(values), "values")
        return list(values)
    lengths = {slot: n for slot, value in values.items() if (n := _length(slot, value, conditioners)) is not None}
    if len(set(lengths.values())) > 1:
        raise UsageError(
            f"the values of {', '.join(lengths)} are {', '.join(map(str, lengths.values()))}; give as many of each"
        )
    first = next(iter(lengths.values()), None)
    lists = first is not None and not any(isinstance(values[slot], Tensor) for slot in lengths)
    repeated = count if lists and first and count and count % first == 0 else None
    total = repeated or _count(count, first, ", ".join(lengths))
    return [
        {slot: value[i % lengths[slot]] if slot in lengths else value for slot, value in values.items()}
        for i in range(total)
    ]


def _length(slot: str, value: Any, conditioners: ConditionerSet | None) -> int | None:
    """How many rows a value holds; None for one that stands for every row."""
    if isinstance(value, Tensor):
        return value.shape[0] if value.ndim else None
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.ndim == 1 else None
    if not isinstance(value, list | tuple):
        return None
    if conditioners is None or slot not in conditioners:
        return len(value)
    if not value:
        raise UsageError(f"slot {slot} was given an empty list", hint="leave it out for no condition")
    return len(value) if conditioners[slot].many(value) else None


def _count(count: int | None, given: int | None, what: str) -> int:
    if count is not None and given is not None and count != given:
        raise UsageError(
            f"count is {count}, but {what} holds {given} rows", hint="leave count out, or give as many rows"
        )
    total = given if given is not None else 1 if count is None else count
    if total < 1:
        raise UsageError(f"{total} images were asked for; at least 1 is needed")
    return total


def prepare(
    conditioners: ConditionerSet,
    given: Sequence[Mapping[str, Any]],
    size: tuple[int, int] | None,
    default: tuple[int, int],
) -> tuple[Prepared, tuple[int, int]]:
    """The rows, prepared, and the image size (h, w): `size`, else the one that the conditions imply, else `default`.

    Raises UsageError for an unknown slot, a value that its conditioner cannot read, or conditions that imply different
    sizes.
    """
    _check_slots(conditioners, given)
    prepared = _prepare_all(conditioners, given, size or default)
    if size is not None:
        return prepared, size
    implied = _implied(conditioners, prepared)
    if implied is None or implied == default:
        return prepared, default
    return _prepare_all(conditioners, given, implied), implied


def _check_slots(conditioners: ConditionerSet, given: Sequence[Mapping[str, Any]]) -> None:
    unknown = sorted({slot for row in given for slot in row} - set(conditioners))
    if unknown:
        raise UsageError(
            f"no slot is called {', '.join(unknown)}",
            hint=f"the slots of this model are {', '.join(conditioners) or 'none: it is unconditional'}",
        )


def _prepare_all(conditioners: ConditionerSet, given: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> Prepared:
    seen: dict[tuple[str, int], Tensors] = {}  # a value repeated over rows is prepared once

    def one(slot: str, value: Any) -> Tensors | None:
        if value is None:
            return None
        key = (slot, id(value))
        if isinstance(value, Tensor) or key not in seen:
            seen[key] = _from_user(conditioners, slot, value, size)
        return seen[key]

    return [{slot: one(slot, row.get(slot)) for slot in conditioners} for row in given]


def _from_user(conditioners: ConditionerSet, slot: str, value: Any, size: tuple[int, int]) -> Tensors:
    try:
        return conditioners[slot].from_user(value, size)
    except LdmkitError:
        raise
    except (ValueError, TypeError, LookupError, OSError) as error:
        lines = str(error).strip().splitlines()
        raise UsageError(
            f"slot {slot} cannot use {_named(value)}: {type(error).__name__}: {lines[0] if lines else 'no message'}",
            hint=f"it is read by {conditioners.examiner(slot).who}",
        ) from error


def _named(value: Any) -> str:
    return f"{value!r:.60}" if isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _implied(conditioners: ConditionerSet, prepared: Prepared) -> tuple[int, int] | None:
    sizes: dict[tuple[int, int], str] = {}
    for row in prepared:
        for slot, tensors in row.items():
            size = None if tensors is None else conditioners.examiner(slot).output_size(tensors)
            if size is not None:
                sizes.setdefault(size, slot)
    if len(sizes) > 1:
        named = ", ".join(f"{h} x {w} ({slot})" for (h, w), slot in sizes.items())
        raise UsageError(
            f"the conditions imply images of different sizes: {named}", hint="sample them apart, or give `size`"
        )
    return next(iter(sizes), None)
