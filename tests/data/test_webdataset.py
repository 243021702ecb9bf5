"""Tar shards: read as the `webdataset` library reads them, but by place."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from braceexpand import braceexpand
from PIL import Image

from ldmkit.data import BadSampleError, Dataset
from ldmkit.data.sources.webdataset.source import WebdatasetSource
from ldmkit.data.sources.webdataset.tar_index import expanded, find, index
from ldmkit.errors import DataError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import webdataset

Files = Mapping[str, bytes]


def png(number: int, size: tuple[int, int] = (8, 6)) -> bytes:
    """A plain picture (w, h) whose red says which one it is."""
    out = io.BytesIO()
    Image.new("RGB", size, (number, 0, 0)).save(out, "PNG")
    return out.getvalue()


def sample(number: int) -> dict[str, bytes]:
    return {"png": png(number), "txt": f"number {number}".encode(), "cls": str(number % 3).encode()}


def write(path: Path, samples: Mapping[str, Files]) -> Path:
    """A shard as people make them with tar."""
    with tarfile.open(path, "w") as archive:
        for key, files in samples.items():
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four shards of ten samples."""
    for shard in range(4):
        write(tmp_path / f"s-{shard:02d}.tar", {f"{n:04d}": sample(n) for n in range(10 * shard, 10 * shard + 10)})
    return tmp_path


def source(path: Any, **options: Any) -> WebdatasetSource:
    return WebdatasetSource(path=str(path), **{"smallest": 1, **options})


def red(image: Image.Image) -> int:
    return int(np.asarray(image)[0, 0, 0])


def test_samples_are_those_the_library_reads(tmp_path: Path) -> None:
    pattern = str(tmp_path / "w-%03d.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with webdataset.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
            for n in range(10):
                about = {"title": f"t{n}", "width": 8, "extra": None if n % 2 else [1, 2]}
                writer.write({"__key__": f"a.b/{n:03d}", "png": png(n), "seg.png": png(n), "cls": n % 3, "json": about})
        shards = sorted(str(path) for path in tmp_path.glob("*.tar"))
        theirs = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    own = source(tmp_path / "w-{000..002}.tar", validation=0.0, columns={"map": "seg.png"}, classes={"map": 256})
    assert own.info().count == len(theirs) == 10
    kinds = {name: field.kind for name, field in own.info().fields.items()}
    assert {name: kinds[name] for name in ("image", "map", "label", "title", "width", "key")} == {
        "image": "image", "map": "map", "label": "label", "title": "text", "width": "number", "key": "text"
    }  # fmt: skip
    for mine, row in zip((own[i] for i in range(10)), theirs, strict=True):
        assert mine["key"] == row["__key__"]
        assert np.array_equal(np.asarray(mine["image"]), np.asarray(row["png"]))
        assert (mine["label"], mine["title"], mine["width"]) == (row["cls"], row["json"]["title"], 8.0)
        assert mine["extra"] == row["json"]["extra"]


@pytest.mark.parametrize("pattern", ["a-{08..11}.tar", "{x,y}/z-{0..2}.tar", "plain.tar", "{a,b{1..2}}", "no{brace}"])
def test_braces_are_expanded_as_elsewhere(pattern: str) -> None:
    assert sorted(set(expanded(pattern))) == sorted(braceexpand(pattern))


def test_an_epoch_takes_one_shard_after_the_other(shards: Path) -> None:
    own = source(shards, validation=0.0)
    order = Dataset(own, size=8).order(5, 4)
    epochs = [[order.index(position)[1] for position in range(40 * e, 40 * e + 40)] for e in (0, 1)]
    for items in epochs:
        assert sorted(items) == list(range(40))
        runs = [[item // 10 for item in items[first : first + 10]] for first in range(0, 40, 10)]
        assert all(len(set(run)) == 1 for run in runs)
        assert any(items[first : first + 10] != sorted(items[first : first + 10]) for first in range(0, 40, 10))
    assert epochs[0] != epochs[1]
    mixed = Dataset(source(shards, validation=0.0, together=4), size=8).order(5, 4)
    items = [mixed.index(position)[1] for position in range(40)]
    assert sorted(items) == list(range(40))
    assert len({item // 10 for item in items[:10]}) > 1


def test_views_of_a_shard_stay_together(shards: Path) -> None:
    own = source(shards, validation=0.2)
    data = Dataset(own, size=8, views=3)
    sizes = own.shards().sizes
    order = data.order(1, 4)
    items = [order.index(position)[1] for position in range(len(data))]
    assert sorted(items) == list(range(3 * sum(sizes)))
    shard_of = np.repeat(np.arange(len(sizes)), np.array(sizes) * 3)
    changes = sum(shard_of[a] != shard_of[b] for a, b in itertools.pairwise(items))
    assert changes == len(sizes) - 1


def test_the_split_goes_by_key_and_leaves_none_out(shards: Path) -> None:
    own = source(shards, validation=0.3)
    parts = [[s["key"] for s in map(part.__getitem__, range(part.info().count or 0))] for part in
             (own.split("train"), own.split("validation"))]  # fmt: skip
    assert sorted(parts[0] + parts[1]) == [f"{n:04d}" for n in range(40)]
    assert 4 <= len(parts[1]) <= 20
    write(shards / "s-99.tar", {"more": sample(99)})
    again = source(shards, validation=0.3).split("validation")
    assert {again[i]["key"] for i in range(again.info().count or 0)} - {"more"} == set(parts[1])
    other = source(shards / "s-0{0,1}.tar", validation=str(shards / "s-03.tar"))
    assert [other.split("train").info().count, other.split("validation").info().count] == [20, 10]
    assert other.split("validation")[0]["key"] == "0030"


def test_classes_are_counted_or_said(shards: Path) -> None:
    assert source(shards).info().fields["label"].classes == 3
    named = source(shards, classes={"label": ["a", "b", "c"]}, validation=0.0)
    assert named.info().fields["label"].names == ("a", "b", "c")
    assert named[4]["label"] == 1
    with pytest.raises(DataError, match=r"the label 2 is none of the 2 classes: a, b"):
        source(shards, classes={"label": ["a", "b"]}, validation=0.0)[2]["label"]


def test_a_shard_cut_short_gives_what_is_before(shards: Path) -> None:
    path = shards / "s-03.tar"
    whole, _ = index(str(path))
    end = whole.files(6)["png"][0] + 5
    path.write_bytes(path.read_bytes()[:end])
    own = source(shards, validation=0.0)
    assert own.info().count == 36
    (problem,) = own.problems
    assert problem.path == str(path)
    assert "damaged after 6 samples" in problem.reason


def test_a_shard_that_goes_away_costs_its_samples_only(shards: Path) -> None:
    own = source(shards, validation=0.0)
    data = Dataset(own, size=8)
    (shards / "s-00.tar").unlink()
    assert data.readable(0)["image"].shape == (3, 8, 8)
    assert "s-00.tar" in data.problems[0].path


def test_a_picture_that_is_none_is_named_with_its_shard(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"one": {"png": b"no picture", "txt": b"x"}, "two": sample(2), "three": {"txt": b"y"}})
    own = source(tmp_path, validation=0.0)
    with pytest.raises(BadSampleError, match="not a picture") as error:
        own[0]["image"]
    assert error.value.path == str(tmp_path / "a.tar") + "/one.png"
    with pytest.raises(BadSampleError, match=r"has no picture \(png\)"):
        own[2]["image"]
    assert own[2]["label"] is None
    data = Dataset(own, size=8)
    heard: list[str] = []
    data.listener = lambda problem: heard.append(problem.path)
    for _ in range(2):
        assert torch.equal(data.readable(0)["image"], data.sample(1)["image"])
    assert heard == [str(tmp_path / "a.tar") + "/one.png"]


def gone(folder: Path) -> str:
    return str(folder / "s-{00..05}.tar")


def packed(folder: Path) -> str:
    path = folder / "s-00.tar"
    (folder / "s-00.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    return str(folder / "s-00.tar.gz")


def empty(folder: Path) -> str:
    return str(write(folder / "nothing.tar", {}))


def without_pictures(folder: Path) -> str:
    return str(write(folder / "texts.tar", {"a": {"txt": b"x"}, "b": {"txt": b"y"}}))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (gone, r"no such shards: .*s-04\.tar, .*s-05\.tar"),
        (lambda folder: "https://example.org/a.tar", "is no local path"),
        (lambda folder: "pipe:cat a.tar", "is no local path"),
        (packed, "is compressed"),
        (empty, "not a single sample"),
        (without_pictures, "no picture is in the first samples; they have txt"),
    ],
)
def test_shards_that_cannot_be_read(shards: Path, place: Callable[[Path], str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        source(place(shards))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"together": 0}, "together is 0"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"columns": {"image": "tif"}}, "columns names image: tif, and there are 'png', 'txt', 'cls'"),
        ({"columns": {"map": "png", "image": "png"}}, "how many classes the maps have"),
    ],
)
def test_impossible_options(shards: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        source(shards, **options)


def test_wildcards_and_folders_find_the_same(shards: Path) -> None:
    paths = [str(shards / f"s-{n:02d}.tar") for n in range(4)]
    assert find((str(shards),)) == find((str(shards / "*.tar"),)) == find(tuple(paths)) == paths


def test_a_shard_that_changed_is_named(shards: Path) -> None:
    before = source(shards).contents()
    (shards / "s-01.tar").touch()
    assert source(shards).contents() == before
    write(shards / "s-03.tar", {"other": sample(7)})
    after = source(shards).contents()
    assert [name for name in before if before[name] != after[name]] == ["s-03.tar"]


def test_json_that_is_none_is_a_bad_sample(tmp_path: Path) -> None:
    about = {"a": json.dumps({"title": "x"}).encode(), "b": b"{", "c": b"[1]"}
    write(tmp_path / "a.tar", {key: {"png": png(1), "json": text} for key, text in {"a": about["a"], **about}.items()})
    with pytest.raises(DataError, match=r"b\.json.*cannot be read as json"):
        source(tmp_path, validation=0.0)


def reds(data: Dataset, items: Iterator[int]) -> Counter[int]:
    return Counter(round(float((data.sample(i)["image"][0, 0, 0] + 1) * 127.5)) for i in items)


def test_every_sample_is_seen_once_an_epoch(shards: Path) -> None:
    data = Dataset(source(shards, validation=0.0), size=8)
    order = data.order(0, 4)
    assert reds(data, (order.index(p)[1] for p in range(40))) == Counter(range(40))
