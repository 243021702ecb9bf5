"""Samples -> batches, in this process or in data workers; the batches are the same."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ldmkit.conditioning import Batch, Conditioner, Tensors
from ldmkit.data.dataset import Dataset
from ldmkit.data.order import Order
from ldmkit.data.sample import Problem, Sample
from ldmkit.errors import DataError, LdmkitError, PluginError, ResourceError, UsageError
from ldmkit.random import generator

TIMEOUT = 300  # seconds a worker may take over one batch before it counts as hung


class Conditioners(Protocol):
    """What loading needs of a `ConditionerSet`."""

    fields: Mapping[str, Mapping[str, str]]

    def worker_copies(self) -> Mapping[str, Conditioner]: ...

    def collate(self, images: Tensor, prepared: list[dict[str, Tensors | None]], positions: Tensor) -> Batch: ...


@dataclass(frozen=True)
class Example:
    """One position, ready to be collated."""

    position: int
    image: Tensor  # (c, h, w)
    prepared: dict[str, Tensors | None]  # None: the condition is absent in this sample


class Examples:
    """Position -> `Example`. Holds no weights and pickles, so a data worker can have a copy."""

    def __init__(self, dataset: Dataset, conditioners: Conditioners, *, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.copies = dict(conditioners.worker_copies())
        self.fields = {slot: dict(fields) for slot, fields in conditioners.fields.items()}
        self.order = Order(seed, dataset.count)

    def __getitem__(self, position: int) -> Example:
        epoch, item = self.order.index(position)
        sample = self.dataset.readable(item, epoch)
        prepared = {
            slot: self._prepared(slot, conditioner, sample, position) for slot, conditioner in self.copies.items()
        }
        return Example(position, sample["image"], prepared)

    def _prepared(self, slot: str, conditioner: Conditioner, sample: Sample, position: int) -> Tensors | None:
        fields = slot_fields(sample, self.fields[slot], slot)
        if fields is None:
            return None
        return conditioner.prepare(fields, generator(self.seed, f"prepare/{slot}", position))


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


def batches(
    dataset: Dataset,
    conditioners: Conditioners,
    *,
    start: int,
    batch: int,
    seed: int,
    steps: int | None = None,
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Batch]:
    """The batches from position `start` on, for ever or `steps` of them.

    Batch k has the `batch` positions from start + k * batch on, of which rank r takes the r-th of `ranks` equal runs. A sample's
    conditions are prepared with the key (seed, ``prepare/<slot>``, position): nothing depends on `workers`.

    Raises `DataError` for data that cannot be used, `ResourceError` for a worker that died or hangs.
    """
    if batch < 1 or batch % ranks:
        raise UsageError(f"batch is {batch}; it must be at least 1 and divisible by the number of ranks, {ranks}")
    own = batch // ranks
    examples = Examples(dataset, conditioners, seed=seed)
    firsts: Iterable[int] = itertools.count(start + rank * own, batch)
    firsts = itertools.islice(firsts, steps)
    runs = (range(first, first + own) for first in firsts)
    rows = _in_workers(examples, runs, workers) if workers else ([examples[p] for p in run] for run in runs)
    for run in rows:
        yield collate(conditioners, run)


def collate(conditioners: Conditioners, examples: list[Example]) -> Batch:
    """Examples -> a batch."""
    return conditioners.collate(
        torch.stack([example.image for example in examples]),
        [example.prepared for example in examples],
        torch.tensor([example.position for example in examples]),
    )


# Data workers


Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _Answer:
    """What a worker sends for one run of positions. Arrays, not tensors: they go through the pipe, and need neither
    /dev/shm nor a file descriptor each."""

    images: NDArray[np.float32]
    prepared: list[dict[str, Arrays | None]]
    problems: list[Problem]
    error: BaseException | None = None


class _Runs(TorchDataset[_Answer]):
    """A run of positions -> an answer, in a worker."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __getitem__(self, run: range) -> _Answer:
        try:
            rows = [self.examples[position] for position in run]
        except LdmkitError as error:  # handed over as it is: a worker's traceback would bury it
            return _Answer(np.empty(0, np.float32), [], [], error)
        return _Answer(
            np.stack([row.image.numpy() for row in rows]),
            [{slot: _arrays(tensors) for slot, tensors in row.prepared.items()} for row in rows],
            self.examples.dataset.substituted,
        )


def _in_workers(examples: Examples, runs: Iterable[range], workers: int) -> Iterator[list[Example]]:
    _check_picklable(examples)
    asked: list[range] = []

    def remembered() -> Iterator[range]:
        for run in runs:
            asked.append(run)
            yield run

    loader = DataLoader(
        _Runs(examples),
        batch_size=None,
        sampler=_Endless(remembered()),
        num_workers=workers,
        collate_fn=_unchanged,
        timeout=TIMEOUT,
        multiprocessing_context=_context(),
        prefetch_factor=4,
    )
    answers = iter(loader)
    while True:
        try:
            answer = next(answers)
        except StopIteration:
            return
        except RuntimeError as error:
            raise _worker_failure(error) from error
        if answer.error is not None:
            raise answer.error
        for problem in answer.problems:
            examples.dataset.report(problem)
        yield [
            Example(position, torch.from_numpy(image), {slot: _tensors(own) for slot, own in row.items()})
            for position, image, row in zip(asked.pop(0), answer.images, answer.prepared, strict=True)
        ]


def _context() -> BaseContext:
    """How workers start: never by a bare fork, which copies other threads' locks. torch is imported once for all of them."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


class _Endless:
    """An iterator as torch's sampler wants it."""

    def __init__(self, runs: Iterator[range]) -> None:
        self.runs = runs

    def __iter__(self) -> Iterator[range]:
        return self.runs


def _unchanged(answer: Any) -> Any:
    return answer


def _arrays(tensors: Tensors | None) -> Arrays | None:
    return None if tensors is None else {name: value.numpy() for name, value in tensors.items()}


def _tensors(arrays: Arrays | None) -> Tensors | None:
    return None if arrays is None else {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}


def _check_picklable(examples: Examples) -> None:
    """Names what cannot be sent to a worker; torch's own message names only the type."""
    parts = {"data source": examples.dataset.source, **{f"slot {s}": c for s, c in examples.copies.items()}}
    for name, part in parts.items():
        for attribute, value in vars(part).items():
            try:
                pickle.dumps(value)
            except Exception as error:  # pickling runs any class's own code
                raise PluginError(
                    f"the {name} ({type(part).__name__}) cannot be sent to a data worker: its attribute {attribute!r}: {error}",
                    hint="use a function or class of a module in its place, or set runtime.workers to 0",
                ) from error
    pickle.dumps(examples)


def _worker_failure(error: RuntimeError) -> Exception:
    text = str(error)
    if "exited unexpectedly" in text:
        return ResourceError(
            f"a data worker died: {text.splitlines()[0]}",
            hint="most often the system was out of memory: try runtime.workers=0, fewer workers or a smaller batch",
        )
    if "timed out" in text:
        return ResourceError(
            f"a data worker gave no batch for {TIMEOUT} seconds",
            hint="a network file system may hang; copy the data to a local disk, or try runtime.workers=0",
        )
    return error
