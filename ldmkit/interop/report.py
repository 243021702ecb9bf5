"""What of a foreign checkpoint went where: matched, missing, unexpected, of another shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from ldmkit.errors import CheckpointError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class KeyReport:
    """Names as the checkpoint has them. `shapes`, `kinds` (whole numbers for floating ones): name -> (there, in the model)."""

    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)
    kinds: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # known, and of no use: recomputed buffers, training losses

    @property
    def complete(self) -> bool:
        """Whether every tensor found its place."""
        return not (self.missing or self.unexpected or self.shapes or self.kinds)

    def require(self, allow_partial: Sequence[str] = (), *, where: str) -> None:
        """Raises CheckpointError unless the match is full, but for names that a pattern of `allow_partial` fits (``loss.*``)."""

        def left(names: Sequence[str]) -> list[str]:
            return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in allow_partial)]

        shapes, missing, unexpected = left(tuple(self.shapes)), left(self.missing), left(self.unexpected)
        lines = [f"{name} is {self.shapes[name][0]}, the model has {self.shapes[name][1]}" for name in shapes]
        kinds = left(tuple(self.kinds))
        lines += [f"{name} is {self.kinds[name][0]}, the model has {self.kinds[name][1]}" for name in kinds]
        lines += [f"{name} is missing" for name in missing] + [f"{name} is not in the model" for name in unexpected]
        if lines:
            more = f"; and {len(lines) - 6} more" if len(lines) > 6 else ""
            raise CheckpointError(
                f"the checkpoint does not fit the configuration ({self.summary}): " + "; ".join(lines[:6]) + more,
                where=where,
                hint="is it the configuration these weights were trained with? `--allow-partial PATTERN` lets named tensors "
                "be left out",
            )

    @property
    def summary(self) -> str:
        """One line for a person."""
        parts = [f"{len(self.matched)} matched", f"{len(self.missing)} missing", f"{len(self.unexpected)} unexpected"]
        parts += [f"{len(self.shapes)} of another shape"]
        return ", ".join([*parts, f"{len(self.kinds)} of another kind"] if self.kinds else parts)

    @property
    def differences(self) -> tuple[str, ...]:
        """The names that did not match."""
        return (*self.missing, *self.unexpected, *self.shapes, *self.kinds)

    def to_json(self) -> dict[str, Any]:
        """For `--json`: the names that did not match, and how many did."""
        shapes = {name: [list(found), list(expected)] for name, (found, expected) in self.shapes.items()}
        return {
            "matched": len(self.matched),
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "shapes": shapes,
            "kinds": {name: list(pair) for name, pair in self.kinds.items()},
            "ignored": len(self.ignored),
        }

    def __add__(self, other: KeyReport) -> KeyReport:
        """Two parts of one checkpoint."""
        return KeyReport(
            self.matched + other.matched,
            self.missing + other.missing,
            self.unexpected + other.unexpected,
            {**self.shapes, **other.shapes},
            {**self.kinds, **other.kinds},
            self.ignored + other.ignored,
        )


def match(
    expected: Mapping[str, Tensor], names: Mapping[str, str], found: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], KeyReport]:
    """The tensors of `expected` (ours) in `found`, where `names` says what each is called there; and how it went.

    Says nothing of unexpected names: what is left over shows only when all parts have taken theirs.
    """
    taken: dict[str, Tensor] = {}
    matched, missing = [], []
    shapes: dict[str, tuple[Shape, Shape]] = {}
    kinds: dict[str, tuple[str, str]] = {}
    for ours, value in expected.items():
        theirs = names[ours]
        if theirs not in found:
            missing.append(theirs)
        elif found[theirs].shape != value.shape:
            shapes[theirs] = (tuple(found[theirs].shape), tuple(value.shape))
        elif found[theirs].is_floating_point() != value.is_floating_point():
            kinds[theirs] = (_kind(found[theirs]), _kind(value))
        else:
            taken[ours] = found[theirs]
            matched.append(theirs)
    return taken, KeyReport(tuple(matched), tuple(missing), (), shapes, kinds)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
