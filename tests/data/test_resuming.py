"""The batches after a resume are those of an uninterrupted run: for every kind of source, with 0, 1 and several workers."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from ldmkit.conditioning import ConditionerSet
from ldmkit.data import Dataset, Source, batches
from ldmkit.data.sources.folder.source import FolderSource
from ldmkit.data.sources.huggingface.source import HuggingfaceSource
from ldmkit.data.sources.webdataset.source import WebdatasetSource
from ldmkit.errors import DataError, ResourceError

COUNT, BROKEN = 23, 5
NOTHING = ConditionerSet({}, vector_width=1)


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8 + 4 * (number % 2), 8), (10 * number, 0, 0)).save(out, "PNG")
    return out.getvalue()[: 45 if number == BROKEN else None]  # one is cut short after its header


def folder(place: Path) -> Source:
    for number in range(COUNT):
        (place / f"{number:02d}.png").write_bytes(png(number))
    return FolderSource(path=str(place), smallest=1, check=False, validation=0.1)


def webdataset(place: Path) -> Source:
    for shard in range(3):
        with tarfile.open(place / f"{shard}.tar", "w") as archive:
            for number in range(shard, COUNT, 3):
                member = tarfile.TarInfo(f"{number:02d}.png")
                member.size = len(png(number))
                archive.addfile(member, io.BytesIO(png(number)))
    return WebdatasetSource(path=str(place), smallest=1, validation=0.1)


def parquet(place: Path) -> None:
    import datasets

    whole = datasets.Dataset.from_dict({"image": [png(number) for number in range(COUNT)]})
    for shard in range(3):
        whole.shard(3, shard).to_parquet(place / f"train-{shard}.parquet")


def table(place: Path) -> Source:
    parquet(place)
    return HuggingfaceSource(path=str(place / "*.parquet"), columns={"image": "image"}, smallest=1, validation=0.1)


def stream(place: Path) -> Source:
    parquet(place)
    options: dict[str, Any] = {"columns": {"image": "image"}, "smallest": 1, "validation": 0.1}
    return HuggingfaceSource(path=str(place / "*.parquet"), streaming=True, block=6, **options)


def cut(source: Source, **options: Any) -> Dataset:
    return Dataset(source.split("train"), size=8, **{"views": None, "crop": "random", "flip": True, **options})


SOURCES = [folder, webdataset, table, stream]


@pytest.mark.slow
@pytest.mark.parametrize("make", SOURCES)
def test_batches_after_a_resume_are_those_of_an_uninterrupted_run(
    make: Callable[[Path], Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "data"
    place.mkdir()
    source = make(place)
    whole = list(batches(cut(source), NOTHING, start=0, batch=5, seed=2, steps=12))  # over two epochs
    for workers, first in ((0, 15), (1, 15), (2, 35)):
        dataset = cut(source)
        steps = 12 - first // 5
        resumed = list(batches(dataset, NOTHING, start=first, batch=5, seed=2, steps=steps, workers=workers))
        for own, expected in zip(resumed, whole[first // 5 :], strict=True):
            assert own.positions.equal(expected.positions)
            assert own.images.equal(expected.images), f"{workers} workers, from {first} on"
        if steps * 5 >= COUNT:
            assert len(dataset.problems) == 1


@pytest.mark.slow
def test_buckets_are_the_same_in_workers(tmp_path: Path) -> None:
    source = folder(tmp_path)
    options = {"buckets": [(8, 8), (8, 12)]}
    whole = list(batches(cut(source, **options), NOTHING, start=0, batch=4, seed=2, steps=10))
    assert {tuple(batch.images.shape[2:]) for batch in whole} == {(8, 8), (8, 12)}
    resumed = batches(cut(source, **options), NOTHING, start=12, batch=4, seed=2, steps=7, workers=2)
    for own, expected in zip(resumed, whole[3:], strict=True):
        assert own.images.equal(expected.images)


MODULE = '''
import os
import signal
import time
import torch
from ldmkit.data import Field, Info, Source
from PIL import Image


class Trouble(Source):
    """Does something to whoever reads sample 7."""

    def __init__(self, what):
        self.what, self.parent = what, os.getpid()

    def info(self):
        return Info(None, {"image": Field("image")})

    def split(self, part):
        return self

    def __getitem__(self, index):
        if index == 7 and self.what == "kill" and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 7 and self.what == "hang":
            time.sleep(60)
        if index == 7 and self.what == "raise":
            raise OSError(5, "the disk is on fire")
        return {"image": Image.new("RGB", (8, 8), (torch.get_num_threads(), 0, 0))}
'''


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "trouble_source.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("trouble_source")


@pytest.mark.slow
def test_a_worker_that_is_killed_is_noticed_at_once(trouble: ModuleType) -> None:
    began = time.monotonic()
    with pytest.raises(ResourceError, match="a data worker died") as error:
        list(batches(Dataset(trouble.Trouble("kill"), size=8), NOTHING, start=0, batch=4, seed=0, steps=4, workers=1))
    assert "fewer workers" in (error.value.hint or "")
    assert time.monotonic() - began < 120  # and not the 300 seconds after which a worker counts as hung


LONELY = """
import os, sys
sys.path.insert(0, sys.argv[1])
import trouble_source
from ldmkit.conditioning import ConditionerSet
from ldmkit.data import Dataset, batches

if __name__ == "__main__":
    data = Dataset(trouble_source.Trouble("nothing"), size=8)
    loader = batches(data, ConditionerSet({}, vector_width=1), start=0, batch=2, seed=0, workers=1)
    next(loader)
    print(os.getpid(), flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_workers_end_with_the_process_that_is_killed(tmp_path: Path, trouble: ModuleType) -> None:
    """Else they would hold its output open, and their memory, for ever."""
    (tmp_path / "lonely.py").write_text(LONELY)
    command = [sys.executable, str(tmp_path / "lonely.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, timeout=240)  # which waits until nobody holds the output
    assert done.returncode == -9, done.stderr.decode()


@pytest.mark.slow
def test_a_worker_that_hangs_is_given_up(trouble: ModuleType) -> None:
    data = Dataset(trouble.Trouble("hang"), size=8)
    with pytest.raises(ResourceError, match="gave no batch for 3 seconds") as error:
        list(batches(data, NOTHING, start=0, batch=4, seed=0, steps=4, workers=1, timeout=3))
    assert "runtime.worker_timeout" in (error.value.hint or "")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_source_raises_is_said_first(trouble: ModuleType, workers: int) -> None:
    data = Dataset(trouble.Trouble("raise"), size=8)
    with pytest.raises(DataError, match=r"sample 7 of Trouble cannot be read: OSError: .*the disk is on fire"):
        list(batches(data, NOTHING, start=0, batch=4, seed=0, steps=4, workers=workers))


@pytest.mark.slow
def test_a_worker_computes_with_one_thread(trouble: ModuleType) -> None:
    data = Dataset(trouble.Trouble("nothing"), size=8)
    batch = next(batches(data, NOTHING, start=0, batch=2, seed=0, workers=2))
    assert ((batch.images[:, 0] + 1) * 127.5).round().unique().tolist() == [1.0]


def test_pictures_that_break_on_the_way_are_counted_until_none_is_left(tmp_path: Path) -> None:
    source = folder(tmp_path)
    data = cut(source)
    heard: list[str] = []
    data.listener = lambda problem: heard.append(problem.path)
    loader = batches(data, NOTHING, start=0, batch=4, seed=0)
    next(loader)
    paths = sorted(tmp_path.glob("*.png"))
    for path in paths[1:]:
        path.write_bytes(b"overwritten")
    for _ in range(20):
        assert next(loader).images.shape == (4, 3, 8, 8)
    assert 15 <= len(heard) <= COUNT
    assert len(set(heard)) == len(heard)
    paths[0].unlink()
    with pytest.raises(DataError, match=r"none of the \d+ pictures can be read any more"):
        next(batches(cut(source), NOTHING, start=0, batch=4, seed=0))  # which has none of them in memory
