"""In which order samples are seen: a function of the position alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ldmkit.data.source import Shards
from ldmkit.errors import DataError, UsageError
from ldmkit.random import generator


class Order(ABC):
    """Position (samples consumed since the start of the run, over all ranks) -> (epoch, item): resuming needs no state."""

    @abstractmethod
    def index(self, position: int) -> tuple[int, int]:
        """(epoch, item) of a position. Raises DataError for one below 0."""

    def check(self, start: int, batch: int) -> None:
        """Raises `UsageError` where batches of `batch` from position `start` on are none of this order."""
        return None


class ShuffledOrder(Order):
    """Each epoch is a permutation keyed by (seed, epoch). `count` None is endless data, taken in order.

    With `shards`, it is a permutation of the shards and, inside as many as are taken together, one of their items: neighbours in
    the order lie near each other on the disk. Raises DataError for a count of 0.
    """

    def __init__(self, seed: int, count: int | None, *, shards: Shards | None = None) -> None:
        if count is not None and count < 1:
            raise DataError("there is not a single sample to draw from")
        assert shards is None or sum(shards.sizes) == count
        self.seed, self.count, self.shards = seed, count, shards
        self._permutations: dict[int, Tensor] = {}

    def index(self, position: int) -> tuple[int, int]:
        _check_position(position)
        if self.count is None:
            return 0, position
        epoch, place = divmod(position, self.count)
        return epoch, int(self._permutation(epoch)[place])

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            if len(self._permutations) > 1:  # a batch touches two epochs at most
                self._permutations.clear()
            assert self.count is not None
            if self.shards is None:
                self._permutations[epoch] = torch.randperm(self.count, generator=generator(self.seed, "order", epoch))
            else:
                self._permutations[epoch] = _by_shards(self.seed, epoch, self.shards)
        return self._permutations[epoch]


def _by_shards(seed: int, epoch: int, shards: Shards) -> Tensor:
    sizes = torch.tensor(shards.sizes)
    firsts = sizes.cumsum(0) - sizes
    order = torch.randperm(len(sizes), generator=generator(seed, "order/shards", epoch))
    parts = []
    for number, group in enumerate(torch.split(order, max(1, shards.together))):
        items = torch.cat([torch.arange(int(firsts[s]), int(firsts[s] + sizes[s])) for s in group])
        within = torch.randperm(len(items), generator=generator(seed, f"order/within/{epoch}", number))
        parts.append(items[within])
    return torch.cat(parts)


class BucketOrder(Order):
    """Batches of `batch` items, each from one bucket; the batches of an epoch come in an order keyed by (seed, epoch).

    An epoch shows every item. A bucket whose items do not fill its last batch begins again in it, so an epoch is a whole number
    of batches, and a position on the grid of `batch` starts one.

    Args:
        buckets: the items of each bucket; empty ones are passed over.

    Raises DataError where all are empty.
    """

    def __init__(self, seed: int, buckets: Sequence[Sequence[int]], batch: int) -> None:
        self.seed, self.batch = seed, batch
        self.buckets = [torch.as_tensor(items, dtype=torch.long) for items in buckets if len(items)]
        if not self.buckets:
            raise DataError("there is not a single sample to draw from")
        chunks = [(bucket, chunk) for bucket, n in enumerate(self._batches) for chunk in range(n)]
        self._chunks = torch.tensor(chunks)
        self._epochs: dict[int, tuple[Tensor, list[Tensor]]] = {}

    @property
    def _batches(self) -> list[int]:
        return [-(-len(items) // self.batch) for items in self.buckets]

    @property
    def count(self) -> int:
        """Positions in an epoch."""
        return self.batch * sum(self._batches)

    def index(self, position: int) -> tuple[int, int]:
        _check_position(position)
        epoch, place = divmod(position, self.count)
        number, row = divmod(place, self.batch)
        order, within = self._epoch(epoch)
        bucket, chunk = self._chunks[order[number]].tolist()
        items = within[bucket]
        return epoch, int(items[(chunk * self.batch + row) % len(items)])

    def check(self, start: int, batch: int) -> None:
        if batch != self.batch or start % batch:
            raise UsageError(
                f"a batch of {batch} from position {start} on would mix buckets: batches of {self.batch} start at its multiples",
                hint="with data.buckets, the batch of a run cannot change on the way: set it back, or train anew with --out DIR",
            )

    def _epoch(self, epoch: int) -> tuple[Tensor, list[Tensor]]:
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                self._epochs.clear()
            order = torch.randperm(len(self._chunks), generator=generator(self.seed, "order/batches", epoch))
            within = [
                items[torch.randperm(len(items), generator=generator(self.seed, f"order/bucket/{epoch}", number))]
                for number, items in enumerate(self.buckets)
            ]
            self._epochs[epoch] = order, within
        return self._epochs[epoch]


def _check_position(position: int) -> None:
    if position < 0:
        raise DataError(f"position {position} is before the first sample")
