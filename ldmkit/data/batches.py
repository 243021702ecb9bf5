"""Samples -> batches, in this process or in data workers; the batches are the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch

from ldmkit.conditioning import Batch
from ldmkit.data.dataset import Dataset
from ldmkit.data.examples import Conditioners, Example, Examples
from ldmkit.data.workers import TIMEOUT, in_workers
from ldmkit.errors import UsageError


def batches(
    dataset: Dataset,
    conditioners: Conditioners,
    *,
    start: int,
    batch: int,
    seed: int,
    steps: int | None = None,
    workers: int = 0,
    timeout: int = TIMEOUT,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Batch]:
    """The batches from position `start` on, for ever or `steps` of them.

    Batch k has the `batch` positions from start + k * batch on, of which rank r takes the r-th of `ranks` equal runs. A sample's
    conditions are prepared with the key (seed, ``prepare/<slot>``, position): nothing depends on `workers`.

    Raises `DataError` for data that cannot be used, `ResourceError` for a worker that died or was silent for `timeout` seconds.
    """
    if batch < 1 or batch % ranks:
        raise UsageError(f"batch is {batch}; it must be at least 1 and divisible by the number of ranks, {ranks}")
    own = batch // ranks
    examples = Examples(dataset, conditioners, seed=seed, batch=batch)
    examples.order.check(start, batch)
    firsts: Iterable[int] = itertools.count(start + rank * own, batch)
    firsts = itertools.islice(firsts, steps)
    runs = (range(first, first + own) for first in firsts)
    rows = in_workers(examples, runs, workers, timeout) if workers else ([examples[p] for p in run] for run in runs)
    for run in rows:
        yield collate(conditioners, run)


def collate(conditioners: Conditioners, examples: list[Example]) -> Batch:
    """Examples -> a batch."""
    return conditioners.collate(
        torch.stack([example.image for example in examples]),
        [example.prepared for example in examples],
        torch.tensor([example.position for example in examples]),
    )
