"""Datasets of the `datasets` library: whole and as a stream. Nothing here needs a network."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmkit.data import BadSampleError, Dataset
from ldmkit.data.sources.huggingface.source import HuggingfaceSource
from ldmkit.data.sources.huggingface.stream import ENDLESS, Stream
from ldmkit.errors import DataError, OfflineError

ROWS = 24


def png(number: int, size: tuple[int, int] = (8, 6)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (number, 0, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library keeps goes where the test's own files are."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)  # seconds, of the library's buffer


def table(pictures: list[Any] | None = None) -> Any:
    import datasets

    kinds = {
        "picture": datasets.Image(),
        "title": datasets.Value("string"),
        "animal": datasets.ClassLabel(names=["cat", "dog", "cow"]),
        "score": datasets.Value("float32"),
        "tags": datasets.List(datasets.Value("string")),
    }
    pictures = pictures or [{"bytes": png(n), "path": None} for n in range(ROWS)]
    rows = range(len(pictures))
    return datasets.Dataset.from_dict(
        {
            "picture": pictures,
            "title": [None if n == 3 else f"t{n}" for n in rows],
            "animal": [n % 3 for n in rows],
            "score": [n / 2 for n in rows],
            "tags": [["a", "b"]] * len(pictures),
        },
        features=datasets.Features(kinds),
    )


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    folder = tmp_path / "parquet"
    folder.mkdir()
    for shard in range(4):
        table().shard(4, shard, contiguous=True).to_parquet(folder / f"train-{shard:05d}-of-00004.parquet")
    return folder


def source(path: Path | str, **options: Any) -> HuggingfaceSource:
    return HuggingfaceSource(path=str(path), **{"smallest": 1, "validation": 0.2, **options})


def red(image: Image.Image) -> int:
    return int(np.asarray(image)[0, 0, 0])


def test_columns_become_fields(parquet: Path) -> None:
    own = source(parquet, columns={"label": "animal", "caption": "title"}, validation=0.0)
    fields = own.info().fields
    assert {name: field.kind for name, field in fields.items()} == {
        "image": "image",
        "label": "label",
        "caption": "text",
        "score": "number",
        "tags": "other",
    }
    assert (fields["label"].classes, fields["label"].names) == (3, ("cat", "dog", "cow"))
    assert own.info().count == ROWS
    for n in (0, 3, 23):
        sample = own[n]
        assert red(sample["image"]) == n
        assert (sample["label"], sample["score"], sample["tags"]) == (n % 3, n / 2, ["a", "b"])
        assert sample["caption"] == (None if n == 3 else f"t{n}")
    assert own.sizes() == [(6, 8)] * ROWS


def test_every_way_of_storing_gives_the_same(parquet: Path, tmp_path: Path) -> None:
    import datasets

    table().save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table(), "test": table().select(range(2))}).save_to_disk(tmp_path / "both")
    for path in (parquet, parquet / "*.parquet", tmp_path / "saved", tmp_path / "both"):
        own = source(path, validation=0.0)
        assert [red(own[n]["image"]) for n in range(ROWS)] == list(range(ROWS)), path
    both = source(tmp_path / "both", validation="test")
    assert both.split("validation").info().count == 2
    with pytest.raises(DataError, match="no split 'valid'; there are train, test"):
        source(tmp_path / "both", split="valid")


def test_pictures_named_by_path_beside_a_json_file(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    rows = []
    for n in range(5):
        (tmp_path / "p" / f"{n}.png").write_bytes(png(n))
        rows.append(json.dumps({"file": f"p/{n}.png", "label": ["x", "y"][n % 2]}))
    (tmp_path / "about.jsonl").write_text("\n".join(rows))
    own = source(tmp_path / "about.jsonl", columns={"image": "file"}, validation=0.0)
    assert [red(own[n]["image"]) for n in range(5)] == list(range(5))
    assert own.info().fields["label"].names == ("x", "y")
    assert [own[n]["label"] for n in range(5)] == [0, 1, 0, 1, 0]
    (tmp_path / "p" / "2.png").unlink()
    with pytest.raises(BadSampleError, match="No such file"):
        own[2]["image"]


def test_a_label_without_names_is_counted_and_maps_need_a_number(tmp_path: Path) -> None:
    import datasets

    rows = {"image": [png(n) for n in range(6)], "seg": [png(n) for n in range(6)], "label": [0, 4, 1, 2, 2, 0]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    own = source(tmp_path / "a.parquet", columns={"image": "image"}, validation=0.0)
    assert own.info().fields["label"].classes == 5
    with pytest.raises(DataError, match="how many classes the field map has"):
        source(tmp_path / "a.parquet", columns={"map": "seg", "image": "image"})


def test_the_split_is_fixed_and_complete(parquet: Path) -> None:
    own = source(parquet)
    parts = [[red(p[i]["image"]) for i in range(p.info().count or 0)] for p in map(own.split, ("train", "validation"))]
    assert sorted(parts[0] + parts[1]) == list(range(ROWS))
    assert parts[1]
    assert [red(source(parquet).split("validation")[0]["image"])] == parts[1][:1]


def test_a_picture_that_cannot_be_decoded_is_passed_over_and_named(tmp_path: Path) -> None:
    table([{"bytes": b"none" if n == 1 else png(n), "path": None} for n in range(4)]).to_parquet(tmp_path / "a.parquet")
    own = source(tmp_path / "a.parquet", validation=0.0)
    data = Dataset(own, size=8)
    assert round(float((data.readable(1)["image"][0, 0, 0] + 1) * 127.5)) == 2
    assert "a.parquet[1]" in data.problems[0].path
    assert own.sizes() == [(6, 8), (1, 1), (6, 8), (6, 8)]


# Streams


def streamed(path: Path, **options: Any) -> HuggingfaceSource:
    return source(path, **{"streaming": True, "block": 5, **options})


def titles(own: HuggingfaceSource, indices: Iterator[int]) -> list[int]:
    return [red(own[i]["image"]) for i in indices]


@pytest.mark.parametrize("validation", [0.2, "train"])
def test_a_row_of_a_stream_is_the_same_however_one_comes_to_it(parquet: Path, validation: Any) -> None:
    own = streamed(parquet, validation=validation).split("train")
    assert own.info().count is None
    assert own.exact
    whole = titles(own, iter(range(60)))
    for start in (0, 3, 17, 31, 59):
        fresh = streamed(parquet, validation=validation).split("train")
        assert titles(fresh, itertools.islice(itertools.count(start), 60 - start)) == whole[start:]
    assert titles(own, iter((40, 2, 41, 2))) == [whole[40], whole[2], whole[41], whole[2]]
    assert titles(pickle.loads(pickle.dumps(own)), iter(range(30, 60, 7))) == whole[30::7]


def test_a_pass_of_a_stream_shows_every_row_once_and_nothing_held_out(parquet: Path) -> None:
    own = streamed(parquet)
    train, held_out = own.split("train"), own.split("validation")
    kept = {red(held_out[i]["image"]) for i in range(held_out.info().count or 0)}
    assert kept
    count = ROWS - len(kept)
    passes = [titles(streamed(parquet, block=1), iter(range(p * count, p * count + count))) for p in (0, 1)]
    assert [sorted(rows) for rows in passes] == [sorted(set(range(ROWS)) - kept)] * 2
    assert passes[0] != passes[1]
    mixed = titles(train, iter(range(count)))
    assert mixed != passes[0]
    assert sorted(mixed[:5]) == sorted(passes[0][:5])  # a block holds the same rows in another order
    other = titles(streamed(parquet, seed=1).split("train"), iter(range(count)))
    assert other != mixed


def test_the_librarys_own_buffer_is_not_exact(parquet: Path) -> None:
    own = streamed(parquet, shuffle_buffer=8, validation="train").split("train")
    assert not own.exact
    assert sorted(titles(own, iter(range(ROWS)))) == list(range(ROWS))
    with pytest.raises(DataError, match="shuffle_buffer is for streams"):
        source(parquet, shuffle_buffer=8)


def test_a_stream_has_no_shapes_and_asks_for_classes(parquet: Path) -> None:
    own = streamed(parquet, columns={"label": "score"}, classes={"label": 3})
    assert own.info().fields["label"].classes == 3
    assert own.split("train").sizes() is None
    with pytest.raises(DataError, match="endless source cannot be sorted into buckets"):
        Dataset(own.split("train"), size=8, buckets=[(8, 8)])
    with pytest.raises(DataError, match="how many classes the field label has"):
        streamed(parquet, columns={"label": "score"})


def test_a_stream_whose_description_is_wrong_says_so() -> None:
    def rows(number: int, skipped: int) -> Iterator[dict[str, Any]]:
        return iter([{"n": n} for n in range(skipped, 7)])

    assert [Stream(rows, length=7, block=1, seed=0)[i]["n"] for i in (5, 8)] == [5, 1]
    assert [Stream(rows, length=ENDLESS, block=1, seed=0)[i]["n"] for i in (6, 8)] == [6, 0]
    stream = Stream(rows, length=9, block=1, seed=0)
    with pytest.raises(DataError, match="ends after 7 rows at most, and the data set says it has 9"):
        [stream[index] for index in range(8)]
    with pytest.raises(DataError, match="not a single sample"):
        Stream(lambda number, skipped: iter([]), length=None, block=1, seed=0)[0]


# What cannot be


def test_a_missing_package_says_what_to_install(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="package datasets") as error:
        source(parquet)
    assert error.value.hint == 'pip install "ldmkit[datasets]"'


def test_a_name_on_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*args: Any, **options: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OfflineError, match="hub cannot be reached") as error:
        source("nobody/nothing-of-the-kind")
    assert "hf download nobody/nothing-of-the-kind" in (error.value.hint or "")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE  # put back, for whatever else reads from the hub


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "./nowhere"}, "no such file or folder"),
        ({"split": "test"}, "cannot be read: Unknown split"),
        ({"columns": {"image": "photo"}}, "columns names image: photo, and there are 'picture', 'title'"),
        ({"block": 0}, "block is 0"),
        ({"validation": 1.5}, "validation is 1.5"),
    ],
)
def test_what_cannot_be_read(parquet: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        source(**{"path": parquet, **options})


def test_a_table_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column holds pictures; there are a, b"):
        source(tmp_path / "a.csv")
