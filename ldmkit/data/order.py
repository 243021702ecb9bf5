"""In which order samples are seen: a function of the position alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.errors import DataError
from ldmkit.random import generator


class Order:
    """Position (samples consumed since the start of the run, over all ranks) -> (epoch, item).

    Each epoch is a permutation keyed by (seed, epoch), so resuming needs no state. `count` None is endless data, taken in order.
    """

    def __init__(self, seed: int, count: int | None) -> None:
        if count is not None and count < 1:
            raise DataError("there is not a single sample to draw from")
        self.seed, self.count = seed, count
        self._permutations: dict[int, Tensor] = {}

    def index(self, position: int) -> tuple[int, int]:
        """(epoch, item) of a position >= 0."""
        if position < 0:
            raise DataError(f"position {position} is before the first sample")
        if self.count is None:
            return 0, position
        epoch, place = divmod(position, self.count)
        return epoch, int(self._permutation(epoch)[place])

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            if len(self._permutations) > 1:  # a batch touches two epochs at most
                self._permutations.clear()
            assert self.count is not None
            self._permutations[epoch] = torch.randperm(self.count, generator=generator(self.seed, "order", epoch))
        return self._permutations[epoch]
