from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ldmkit.data import Dataset, batches
from ldmkit.data.sources.scenes.source import ScenesSource as Scenes
from ldmkit.training.autoencoder import pictures_only
from ldmkit.training.caching.samples import Remembered


def same(mine: Any, other: Any) -> bool:
    if isinstance(mine, torch.Tensor):
        return mine.dtype == other.dtype and torch.equal(mine, other)
    if isinstance(mine, np.ndarray):
        return mine.dtype == other.dtype and bool(np.array_equal(mine, other, equal_nan=mine.dtype.kind == "f"))
    return bool(mine == other)


@pytest.mark.parametrize("zoom", [None, (0.4, 0.9)])
def test_the_same_samples_to_the_last_bit(zoom: tuple[float, float] | None) -> None:
    plain = Dataset(Scenes(count=4), size=32, crop="random", flip=True, views=2, zoom=zoom, seed=3)
    kept = Remembered(plain)
    assert (len(kept), kept.finite) == (8, True)
    for _ in range(2):
        for item in range(len(plain)):
            mine, other = kept.readable(item, epoch=1), plain.readable(item)
            assert set(mine) == set(other)
            assert all(same(mine[field], other[field]) for field in other)


def test_nothing_is_read_twice_and_pictures_take_a_byte_a_value(
    toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toy.data()
    kept = Remembered(data, largest=10_000_000)
    reads: list[int] = []
    original = type(data.source).__getitem__
    monkeypatch.setattr(
        type(data.source), "__getitem__", lambda self, index: (reads.append(index), original(self, index))[1]
    )
    for batch in batches(kept, pictures_only(), start=0, batch=24, seed=1, steps=3):
        assert len(batch) == 24
    assert sorted(reads) == list(range(24))
    assert 10_000_000 - kept._left == 24 * 3 * 16 * 16


def test_what_does_not_fit_is_read_each_time(toy: SimpleNamespace) -> None:
    data = toy.data()
    kept = Remembered(data, largest=5 * 3 * 16 * 16)
    for _ in range(2):
        for item in range(24):
            assert torch.equal(kept.readable(item)["image"], data.readable(item)["image"])
    assert len(kept._kept) == 5


def test_a_value_that_was_handed_out_may_be_changed(toy: SimpleNamespace) -> None:
    kept = Remembered(toy.data())
    expected = kept.readable(3)["image"].clone()
    kept.readable(3)["image"].zero_()
    kept.readable(3)["image"].zero_()
    assert torch.equal(kept.readable(3)["image"], expected)


def test_workers_start_empty() -> None:
    kept = Remembered(Dataset(Scenes(count=4), size=32, seed=3))
    kept.readable(0)["image"]
    assert len(pickle.dumps(kept)) < 20_000
    assert torch.equal(pickle.loads(pickle.dumps(kept)).readable(0)["image"], kept.readable(0)["image"])
