"""Configurations come from where the weights do: what no network can be built of is said, and none is built of a billion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ldmkit.errors import CheckpointError, LdmkitError

MOST_LAYERS = 128  # of anything that is counted: levels, blocks a level, transformer blocks


@contextmanager
def sane() -> Iterator[None]:
    """Inside, numbers of the configuration are used; what Python and torch say of a wrong one becomes a CheckpointError."""
    try:
        yield
    except LdmkitError:
        raise
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        what = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"the configuration describes a network that cannot be built: {what}") from error


def grouped(widths: Sequence[int], groups: int, what: str) -> None:
    """Raises CheckpointError where a width does not fall into so many groups, in which its norm would be another."""
    if odd := [width for width in widths if width % groups]:
        raise CheckpointError(f"the {what} norms in {groups} groups, which do not divide its {odd[0]} channels")


def bounded(params: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Raises CheckpointError where one of these counts, or an entry of these lists, is out of bounds."""
    for name in names:
        value = params.get(name, 1)
        for number in [len(value), *value] if isinstance(value, list | tuple) else [value]:
            if not isinstance(number, int) or not 0 < number <= MOST_LAYERS:
                said = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}..."
                raise CheckpointError(f"the configuration's {where} says {name}: {said}; 1 to {MOST_LAYERS} are read")
