"""What a data source yields: samples, and what a source says about them before any is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ldmkit.errors import DataError
from ldmkit.fields import Field


class MissingFieldError(DataError, KeyError):
    """A field that a sample has no key for. (A field whose value is None is there, and absent.)"""


@dataclass(frozen=True)
class Problem:
    """A file that a source passed over (`skipped`), or used with a remark."""

    path: str
    reason: str
    skipped: bool = True


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
