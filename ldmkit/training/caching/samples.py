"""Samples that were read once stay in memory, in few bytes: drawing or cropping a picture costs more than keeping it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ldmkit.data import Dataset, Sample

LARGEST = 2**30  # bytes that are kept; what comes after is read each time


class Remembered(Dataset):
    """A finite data set whose samples are kept as they are read, field by field; bit for bit the same samples.

    Pictures of 8 bits are kept in 8 bits, maps of class ids in as many as they need. A data worker starts with nothing kept.
    """

    def __init__(self, dataset: Dataset, *, largest: int = LARGEST) -> None:
        assert dataset.finite, "another epoch would show other views"
        vars(self).update(vars(dataset))  # the same views of the same source
        self._left = largest
        self._fields: dict[int, tuple[str, tuple[str, ...]]] = {}  # item -> name, fields
        self._kept: dict[tuple[int, str], tuple[Any, torch.dtype | None]] = {}

    def readable(self, item: int, epoch: int = 0) -> Sample:
        """As `Dataset.readable`."""
        read: list[Sample] = []

        def sample() -> Sample:
            if not read:
                read.append(super(Remembered, self).readable(item, epoch))
            return read[0]

        if item not in self._fields:
            self._fields[item] = (sample().name, tuple(sample()))
        name, fields = self._fields[item]
        return Sample({field: partial(self._field, item, field, sample) for field in fields}, name=name)

    def _field(self, item: int, field: str, sample: Callable[[], Sample]) -> Any:
        key = (item, field)
        if key in self._kept:
            return _unpacked(*self._kept[key])
        value = sample()[field]
        small, dtype = _packed(value)
        size = small.nbytes if isinstance(small, Tensor) else getattr(value, "nbytes", 200)
        if size <= self._left:
            self._left -= size
            self._kept[key] = (small, dtype)
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_fields": {}, "_kept": {}}


def _packed(value: Any) -> tuple[Any, torch.dtype | None]:
    """A value in fewer bytes, and the dtype it comes back in; None: as it is."""
    if not isinstance(value, Tensor):
        return value, None
    if value.dtype == torch.float32:
        small = ((value + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return (small, torch.float32) if torch.equal(_unpacked(small, torch.float32), value) else (value.clone(), None)
    if value.dtype == torch.int64 and value.numel():
        for dtype in (torch.uint8, torch.int16, torch.int32):
            limits = torch.iinfo(dtype)
            if limits.min <= int(value.min()) and int(value.max()) <= limits.max:
                return value.to(dtype), torch.int64
    return value.clone(), None


def _unpacked(small: Any, dtype: torch.dtype | None) -> Any:
    if dtype == torch.float32:
        return small.float() / 127.5 - 1.0
    if dtype is not None:
        return small.to(dtype)
    return small.clone() if isinstance(small, Tensor) else small
