"""What a data source yields: samples, and what a source says about them before any is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ldmkit.errors import DataError

Kind = Literal["image", "map", "label", "text", "boxes", "number", "other"]
Color = tuple[int, int, int]


class MissingFieldError(DataError, KeyError):
    """A field that a sample has no key for. (A field whose value is None is there, and absent.)"""


class BadSampleError(DataError):
    """One picture that cannot be used; `path` is its file, `reason` why. The others can still be."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason, where=printable(path))
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type[BadSampleError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


@dataclass(frozen=True)
class Problem:
    """A file that a source passed over (`skipped`), or used with a remark."""

    path: str
    reason: str
    skipped: bool = True


@dataclass(frozen=True)
class Field:
    """What a field of a sample holds, known without decoding it.

    =========  ===========================================================  ==============================
    kind       in a source's sample                                         in a `Dataset`'s sample
    =========  ===========================================================  ==============================
    image      PIL image                                                    float (c, h, w) in [-1, 1]
    map        PIL image or integer array (h, w) of class ids               int64 (h, w), same ids
    boxes      rows (class id, left, top, right, bottom), sides in [0, 1]   float (n, 5), cut to the view
    label      int                                                          int
    text       str                                                          str
    number     float                                                        float
    other      anything; float arrays (h, w) or (c, h, w) can be aligned    as it is; aligned: float (c, h, w)
    =========  ===========================================================  ==============================

    `classes` counts the ids of labels, maps and boxes; in a map, an id outside [0, classes) means unlabelled (255 by convention).
    `names` and `palette` (RGB, 0..255) go by id.
    """

    kind: Kind
    classes: int | None = None
    names: tuple[str, ...] | None = None
    palette: tuple[Color, ...] | None = None


@dataclass(frozen=True)
class Info:
    """What a source has. `count` None means endless."""

    count: int | None
    fields: Mapping[str, Field]
    channels: int = 3
    licence: str | None = None
    notes: tuple[str, ...] = field(default=())


class Sample(Mapping[str, Any]):
    """A mapping whose fields load when they are first read, and stay.

    Args:
        loaders: field -> a function without arguments that gives its value (None = absent).
        name: says where the sample comes from, for messages.
        origins: field -> the file it comes from, where that differs from `name`.

    Reading a field there is no loader for raises `MissingFieldError`, a `DataError` that names those there are.
    """

    def __init__(
        self,
        loaders: Mapping[str, Callable[[], Any]],
        *,
        name: str = "sample",
        origins: Mapping[str, str] | None = None,
    ) -> None:
        self._loaders, self._values = dict(loaders), dict[str, Any]()
        self.name, self._origins = name, dict(origins or {})

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            if key not in self._loaders:
                raise MissingFieldError(
                    f"the sample has no field {key!r}; it has {', '.join(map(repr, self._loaders)) or 'none'}",
                    hint="choose data that have it, or read another field in its place (`fields:` of the slot)",
                    where=self.name,
                )
            self._values[key] = self._loaders[key]()
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._loaders  # without loading

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)

    def __repr__(self) -> str:
        return f"Sample({self.name}: {', '.join(self._loaders)})"

    def origin(self, key: str) -> str:
        """Where a field comes from, for messages."""
        return self._origins.get(key, self.name)


def printable(path: str) -> str:
    """A path that can be written anywhere: bytes that are no UTF-8 become ``\\xNN``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
