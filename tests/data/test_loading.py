"""Order and batches: a function of the position, whoever computes it."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ldmkit.conditioning import ConditionerSet
from ldmkit.data import Dataset, ShuffledOrder, batches, slot_fields
from ldmkit.data.examples import Examples
from ldmkit.data.sources.digits.source import DigitsSource
from ldmkit.data.sources.scenes.source import ScenesSource
from ldmkit.data.workers import _Runs, _worker_failure
from ldmkit.errors import DataError, PluginError, ResourceError, UsageError

MODULE = '''
import torch
from ldmkit.conditioning import Conditioner, Conditioning, Ports
from ldmkit.errors import DataError


class Noisy(Conditioner):
    """Adds noise to the label, so that its generator shows."""

    reads = ("label",)

    def __init__(self, *, broken: bool = False):
        super().__init__()
        self.broken, self.emits = broken, Ports(vector=4)
        self.net = torch.nn.Linear(1, 4)

    def prepare(self, sample, generator=None):
        if self.broken:
            raise DataError("cannot be prepared", hint="mend it")
        return {"value": torch.tensor([float(sample["label"])]) + torch.rand(1, generator=generator)}

    def encode(self, prepared, canvas):
        return Conditioning(vector=self.net(prepared["value"]))

    def null(self, canvas):
        return Conditioning(vector=canvas.zeros(1, 4))
'''


@pytest.fixture
def noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A conditioner in a module of its own, so that a data worker can import it."""
    (tmp_path / "noisy_conditioner.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("noisy_conditioner")


def conditioners(noisy: ModuleType, **options: Any) -> ConditionerSet:
    return ConditionerSet({"digit": noisy.Noisy(**options)}, vector_width=4)


def test_an_epoch_is_a_permutation_and_the_next_another() -> None:
    order = ShuffledOrder(3, 50)
    epochs = [[order.index(position) for position in range(start, start + 50)] for start in (0, 50)]
    assert [epoch for epoch, _ in epochs[1]] == [1] * 50
    items = [[item for _, item in pairs] for pairs in epochs]
    assert sorted(items[0]) == sorted(items[1]) == list(range(50))
    assert items[0] != items[1]
    assert ShuffledOrder(3, 50).index(77) == order.index(77)  # without having been anywhere before
    assert [ShuffledOrder(4, 50).index(p)[1] for p in range(50)] != items[0]


def test_endless_data_go_in_order() -> None:
    assert ShuffledOrder(0, None).index(10**9) == (0, 10**9)
    with pytest.raises(DataError, match="not a single sample"):
        ShuffledOrder(0, 0)


def test_batches_depend_on_positions_alone(noisy: ModuleType) -> None:
    dataset, slots = Dataset(DigitsSource(), size=16), conditioners(noisy)
    whole = list(batches(dataset, slots, start=0, batch=12, seed=5, steps=2))
    halves = list(batches(dataset, slots, start=12, batch=6, seed=5, steps=2))
    assert torch.equal(whole[1].images, torch.cat([half.images for half in halves]))
    values = [batch.prepared["digit"]["value"] for batch in halves]
    assert torch.equal(whole[1].prepared["digit"]["value"], torch.cat(values))
    assert whole[1].positions.tolist() == list(range(12, 24))
    ranks = [next(batches(dataset, slots, start=12, batch=12, seed=5, rank=r, ranks=3)) for r in range(3)]
    assert torch.equal(whole[1].images, torch.cat([own.images for own in ranks]))
    other = next(batches(dataset, slots, start=0, batch=12, seed=6))
    assert not torch.equal(whole[0].images, other.images)


@pytest.mark.slow
def test_workers_change_nothing_and_their_errors_arrive_whole(noisy: ModuleType) -> None:
    dataset, slots = Dataset(DigitsSource(), size=16, crop="random", flip=True, views=None), conditioners(noisy)
    here = list(batches(dataset, slots, start=1435, batch=4, seed=1, steps=4))  # across the end of an epoch
    there = list(batches(dataset, slots, start=1435, batch=4, seed=1, steps=4, workers=2))
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.positions, b.positions)
        assert torch.equal(a.prepared["digit"]["value"], b.prepared["digit"]["value"])
    endless = batches(dataset, conditioners(noisy, broken=True), start=0, batch=4, seed=1, workers=1)
    with pytest.raises(DataError, match="cannot be prepared") as error:
        list(itertools.islice(endless, 1))
    assert error.value.hint == "mend it"


@pytest.mark.slow
def test_workers_that_are_spawned(noisy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems without a fork server: nothing of this process is there but what was sent."""
    monkeypatch.setattr("ldmkit.data.workers._context", lambda: multiprocessing.get_context("spawn"))
    dataset, slots = Dataset(DigitsSource(), size=16, crop="random", views=None), conditioners(noisy)
    here, there = (next(batches(dataset, slots, start=8, batch=4, seed=1, workers=count)) for count in (0, 1))
    assert torch.equal(here.images, there.images)
    assert torch.equal(here.prepared["digit"]["value"], there.prepared["digit"]["value"])


def test_a_worker_sends_nothing_through_shared_memory(noisy: ModuleType) -> None:
    """Tensors would go through /dev/shm, which a container may have a few megabytes of; arrays go through the pipe."""
    examples = Examples(Dataset(DigitsSource(), size=16), conditioners(noisy), seed=1, batch=4)
    answer = _Runs(examples)[range(4)]
    values = [array for row in answer.prepared for slot in row.values() for array in (slot or {}).values()]
    assert len(values) == 4
    assert {type(value) for value in (answer.images, *values)} == {np.ndarray}
    sent = ForkingPickler.dumps(answer)  # with which torch would put tensors there
    assert len(sent) > answer.images.nbytes
    assert torch.equal(torch.from_numpy(pickle.loads(sent).images[0]), examples[0].image)


def test_what_cannot_be_pickled_is_named(noisy: ModuleType) -> None:
    slots = conditioners(noisy)
    slots["digit"].filter = lambda value: value
    with pytest.raises(PluginError, match=r"slot digit \(Noisy\).*'filter'"):
        next(batches(Dataset(DigitsSource(), size=16), slots, start=0, batch=2, seed=0, workers=1))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "out of memory"),
        ("DataLoader timed out after 300 seconds", "network file system"),
    ],
)
def test_a_worker_that_dies_or_hangs(message: str, told: str) -> None:
    error = _worker_failure(RuntimeError(message))
    assert isinstance(error, ResourceError)
    assert told in str(error)
    other = RuntimeError("something else")
    assert _worker_failure(other) is other


def test_a_batch_that_ranks_cannot_share(noisy: ModuleType) -> None:
    with pytest.raises(UsageError, match="divisible by the number of ranks, 2"):
        next(batches(Dataset(DigitsSource(), size=16), conditioners(noisy), start=0, batch=3, seed=0, ranks=2))


def test_absent_and_missing_fields() -> None:
    sample = {"image": 1, "title": "a", "caption": None}
    assert slot_fields(sample, {"caption": "title"}, "text") == {"image": 1, "caption": "a"}
    assert slot_fields(sample, {"caption": "caption"}, "text") is None
    with pytest.raises(
        DataError, match=r"slot text reads the field 'words', and the data have 'image', 'title', 'caption'"
    ):
        slot_fields(sample, {"caption": "words"}, "text")


def test_endless_scenes_are_batched(noisy: ModuleType) -> None:
    dataset = Dataset(ScenesSource(size=16), size=16)
    batch = next(batches(dataset, conditioners(noisy), start=7, batch=2, seed=0))
    assert torch.equal(batch.images[1], dataset.sample(8)["image"])
