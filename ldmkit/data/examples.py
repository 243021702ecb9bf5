"""One position -> one example: a sample read, and prepared for every slot. Holds no weights, and pickles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ldmkit.conditioning import Batch, Tensors
from ldmkit.conditioning.checks import Examiner
from ldmkit.data.dataset import Dataset
from ldmkit.data.sample import MissingFieldError, Sample
from ldmkit.errors import DataError, LdmkitError
from ldmkit.images.files import BadSampleError
from ldmkit.random import generator


class Conditioners(Protocol):
    """What loading needs of a `ConditionerSet`; images are (b, c, h, w) in [-1, 1], positions (b,) int64."""

    fields: Mapping[str, Mapping[str, str]]

    def worker_copies(self) -> Mapping[str, Examiner]: ...

    def collate(self, images: Tensor, prepared: list[dict[str, Tensors | None]], positions: Tensor) -> Batch: ...


@dataclass(frozen=True)
class Example:
    """One position, ready to be collated."""

    position: int
    image: Tensor  # (c, h, w)
    prepared: dict[str, Tensors | None]  # None: the condition is absent in this sample


class Examples:
    """Position -> `Example`. Holds no weights and pickles, so a data worker can have a copy."""

    def __init__(self, dataset: Dataset, conditioners: Conditioners, *, seed: int, batch: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.copies = dict(conditioners.worker_copies())
        self.fields = {slot: dict(fields) for slot, fields in conditioners.fields.items()}
        self.order = dataset.order(seed, batch)

    def __getitem__(self, position: int) -> Example:
        epoch, item = self.order.index(position)
        try:
            sample = self.dataset.readable(item, epoch)
            image = sample["image"]
        except (LdmkitError, MemoryError):
            raise
        except Exception as error:  # a source is anybody's code
            raise DataError(
                f"sample {item} of {type(self.dataset.source).__name__} cannot be read: {type(error).__name__}: {error}",
                hint="--debug shows where",
            ) from error
        prepared = {slot: self._prepared(slot, copy, sample, position) for slot, copy in self.copies.items()}
        return Example(position, image, prepared)

    def _prepared(self, slot: str, copy: Examiner, sample: Sample, position: int) -> Tensors | None:
        fields = slot_fields(sample, self.fields[slot], slot)
        if fields is None:
            return None
        try:
            return copy.prepare(fields, generator(self.seed, f"prepare/{slot}", position))
        except (BadSampleError, MissingFieldError):
            raise
        except DataError as error:
            read = " and ".join(self.fields[slot].values())
            where = error.where or sample.name
            raise DataError(f"slot {slot}, field {read}: {error.message}", hint=error.hint, where=where) from error


def slot_fields(sample: Mapping[str, Any], fields: Mapping[str, str], slot: str) -> Mapping[str, Any] | None:
    """What a conditioner reads of a sample, under its own field names; None where one of its fields is absent.

    `fields` maps the conditioner's field to the sample's. A field the sample has no key for is a `DataError`.
    """
    for own, theirs in fields.items():
        if theirs not in sample:
            raise DataError(
                f"slot {slot} reads the field {theirs!r}, and the data have {', '.join(map(repr, sample))}",
                hint=f"choose data that have it, or name another field: conditioners.{slot}.fields: {{{own}: ...}}",
            )
    if any(sample[theirs] is None for theirs in fields.values()):
        return None
    out = {"image": sample["image"]} if "image" in sample else {}
    return out | {own: sample[theirs] for own, theirs in fields.items()}
