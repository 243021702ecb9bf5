"""A bucket whose items do not fill its last batch begins again in it."""

from __future__ import annotations

from collections import Counter

from ldmkit.data.order import BucketOrder


def test_the_last_batch_of_a_bucket_holds_no_item_twice() -> None:
    order = BucketOrder(3, [range(5), range(5, 12)], 4)
    assert order.count == 16
    items = [order.index(position)[1] for position in range(16)]
    batches = [items[first : first + 4] for first in range(0, 16, 4)]
    assert all(len(set(batch)) == 4 for batch in batches)
    assert all(len({item < 5 for item in batch}) == 1 for batch in batches), "one bucket each"
    counts = Counter(items)
    assert set(counts) == set(range(12))
    assert sorted(counts[item] for item in range(5)) == [1, 1, 2, 2, 2]
    assert sorted(counts[item] for item in range(5, 12)) == [1] * 6 + [2]
