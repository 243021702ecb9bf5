"""Aspect-ratio buckets: each picture at the size nearest to its shape, each batch of one size, by position alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldmkit.conditioning import ConditionerSet
from ldmkit.data import BadSampleError, Dataset, Field, Info, Source, batches
from ldmkit.data.buckets import assign, nearest
from ldmkit.data.order import BucketOrder
from ldmkit.data.sources.folder.source import FolderSource
from ldmkit.errors import DataError, UsageError

SIZES = [(64, 64), (48, 64), (64, 48), (32, 96), (200, 300)]
BUCKETS = [(16, 16), (16, 24), (24, 16), (8, 32)]


class Shapes(Source):
    """Twenty-three pictures of five shapes; `known` says whether it knows them, `bad` which cannot be read."""

    def __init__(self, *, known: bool = True, bad: tuple[int, ...] = ()) -> None:
        self.known, self.bad = known, bad

    def info(self) -> Info:
        return Info(23, {"image": Field("image")})

    def split(self, part: str) -> Source:
        return self

    def sizes(self) -> list[tuple[int, int]] | None:
        return [SIZES[index * index % 5] for index in range(23)] if self.known else None

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index in self.bad:
            raise BadSampleError(f"{index}.png", "broken")
        height, width = SIZES[index * index % 5]
        return {"image": Image.new("RGB", (width, height), (index, 0, 0))}


NOTHING = ConditionerSet({}, vector_width=1)


def data(**options: Any) -> Dataset:
    source = {name: options.pop(name) for name in ("known", "bad") if name in options}
    return Dataset(Shapes(**source), size=16, **{"buckets": BUCKETS, **options})


def test_the_nearest_in_log_aspect() -> None:
    assert nearest((100, 100), BUCKETS) == 0
    assert nearest((100, 149), BUCKETS) == 1
    assert nearest((149, 100), BUCKETS) == 2
    # between 1 and 3 / 2 the middle is sqrt(3 / 2), not 5 / 4
    assert nearest((1000, round(1000 * math.sqrt(1.5)) - 2), BUCKETS) == 0
    assert nearest((1000, round(1000 * math.sqrt(1.5)) + 2), BUCKETS) == 1
    assert nearest((10, 1000), BUCKETS) == 3
    # of the same shape: the largest that is filled, else the smallest
    same = [(16, 16), (64, 64), (32, 32)]
    assert [nearest((side, side), same) for side in (100, 40, 32, 8)] == [1, 2, 2, 0]
    assert assign([(10, 10), (10, 30), (10, 10)], BUCKETS).tolist() == [0, 3, 0]


def test_every_batch_has_one_size_and_an_epoch_shows_every_item() -> None:
    for views in (1, 3, None):
        dataset = data(views=views)
        order = dataset.order(7, 4)
        assert isinstance(order, BucketOrder)
        for epoch in (0, 1):
            items = []
            for first in range(epoch * order.count, (epoch + 1) * order.count, 4):
                places = [order.index(position) for position in range(first, first + 4)]
                assert {own for own, _ in places} == {epoch}
                assert len({dataset.size_of(item) for _, item in places}) == 1
                items += [item for _, item in places]
            seen = Counter(items)
            assert sorted(seen) == list(range(dataset.count or 0))
            assert max(seen.values()) <= 4  # a bucket of one picture fills its batch with it
        assert [order.index(p) for p in range(order.count)] != [
            (0, item) for _, item in map(order.index, range(order.count, 2 * order.count))
        ]


def test_a_batch_is_a_function_of_its_position() -> None:
    dataset = data(views=None, crop="random", flip=True)
    whole = list(batches(dataset, NOTHING, start=0, batch=4, seed=3, steps=20))
    for start in (4, 28, 60):
        batch = next(batches(dataset, NOTHING, start=start, batch=4, seed=3))
        assert batch.images.equal(whole[start // 4].images)
    ranks = [next(batches(dataset, NOTHING, start=12, batch=4, seed=3, rank=r, ranks=2)) for r in (0, 1)]
    assert [own.images.shape[2:] for own in ranks] == [whole[3].images.shape[2:]] * 2
    other = list(batches(dataset, NOTHING, start=0, batch=4, seed=4, steps=20))
    assert [b.images.shape for b in whole] != [b.images.shape for b in other]


def test_another_batch_on_the_way_is_an_error() -> None:
    with pytest.raises(UsageError, match="batch of 6 from position 8 on would mix buckets") as error:
        next(batches(data(), NOTHING, start=8, batch=6, seed=0))
    assert "cannot change on the way" in (error.value.hint or "")


def test_what_stands_in_for_a_broken_picture_has_the_size_of_the_batch() -> None:
    dataset = data(bad=tuple(range(0, 23, 2)))
    for batch in batches(dataset, NOTHING, start=0, batch=4, seed=3, steps=12):
        assert batch.images.shape[0] == 4
    assert dataset.problems


def test_at_one_size() -> None:
    plain = data().at_one_size()
    assert {tuple(plain.sample(item)["image"].shape[1:]) for item in range(23)} == {(16, 16)}
    assert plain.at_one_size() is plain


def test_a_folder_knows_its_shapes(tmp_path: Path) -> None:
    for number, (height, width) in enumerate(SIZES):
        Image.new("RGB", (width, height), (number, 0, 0)).save(tmp_path / f"{number}.png")
    turned = Image.new("RGB", (48, 96))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "9.jpg", exif=exif)
    source = FolderSource(path=str(tmp_path), validation=0.2)
    parts = [source.split(part) for part in ("train", "validation")]
    assert sorted(size for part in parts for size in part.sizes()) == sorted([*SIZES, (48, 96)])
    assert [parts[0].sizes()[0]] == [parts[0][0]["image"].size[::-1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"known": False}, "Shapes does not know it"),
        ({"buckets": []}, r"buckets is \[\]"),
        ({"buckets": [(16, 16), (16, 16)]}, "list of different"),
        ({"buckets": [(0, 16)]}, "at least 1 pixel"),
    ],
)
def test_impossible_buckets(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data(**options).size_of(0)
