"""Rows that can only be read one after the other, found by index all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ldmkit.errors import DataError
from ldmkit.random import generator

Row = dict[str, Any]
ENDLESS = 2**62  # a length for what can be opened at any index, and comes back only roughly


class Stream:
    """Pass after pass over rows, endless. Row `index` is the same one whoever asks, and however he came there.

    Each pass is read in its own order; then `block` rows at a time are taken in a drawn order, keyed by (seed, number of the
    block): that is what stands in for a shuffle buffer, whose contents no checkpoint could bring back. Reading on is cheap;
    a jump forward reads over what lies between, and one back starts at the beginning of a pass.

    Args:
        open_pass: (number of the pass, rows to leave out) -> its rows.
        length: rows of a pass, where that is known: a jump then begins in its own pass. Another number is a `DataError`.
        block: 1 takes the rows as they come.
    """

    def __init__(
        self, open_pass: Callable[[int, int], Iterator[Row]], *, length: int | None, block: int, seed: int
    ) -> None:
        self.open_pass, self.length, self.block, self.seed = open_pass, length, block, seed
        self._blocks: dict[int, list[Row]] = {}
        self._rows: Iterator[Row] | None = None
        self._pass, self._next, self._since = 0, 0, 0  # the pass, the index of its next row, rows read of it

    def __getitem__(self, index: int) -> Row:
        number, place = divmod(index, self.block)
        if number not in self._blocks:
            if len(self._blocks) > 1:  # neighbours: a row that stands in for a broken one may be in the next
                del self._blocks[min(self._blocks, key=lambda kept: (abs(kept - number) <= 1, kept))]
            self._go_to(number * self.block)
            rows = [self._read() for _ in range(self.block)]
            order = torch.randperm(self.block, generator=generator(self.seed, "stream/block", number))
            self._blocks[number] = [rows[place] for place in order.tolist()]
        return self._blocks[number][place]

    def _go_to(self, index: int) -> None:
        if self._rows is None or index < self._next or self._far(index):
            self._pass = 0 if self.length is None else index // self.length
            skipped = 0 if self.length is None else index % self.length
            self._rows, self._since = self.open_pass(self._pass, skipped), skipped
            self._next = 0 if self.length is None else index
        while self._next < index:
            self._read()

    def _far(self, index: int) -> bool:
        """Whether another pass is better opened than read up to."""
        return self.length is not None and index // self.length > self._pass + 1

    def _read(self) -> Row:
        assert self._rows is not None
        for row in self._rows:
            self._next, self._since = self._next + 1, self._since + 1
            return row
        if self._since == 0:
            raise DataError("the stream has not a single sample")
        if self.length not in (None, ENDLESS, self._since):
            raise DataError(
                f"a pass over the stream ends after {self._since} rows at most, and the data set says it has {self.length}",
                hint="its description is of another version; delete it from the cache of datasets",
            )
        self._pass, self._since = self._pass + 1, 0
        self._rows = self.open_pass(self._pass, 0)
        return self._read()

    def __getstate__(self) -> dict[str, Any]:
        """A data worker begins anew."""
        return {**vars(self), "_blocks": {}, "_rows": None}
