"""Buckets, kept conditions and shuffle buffers, through whole runs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldmkit.errors import RecipeError, UsageError
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.runs.resume_check import verify_resume
from ldmkit.runs.run import run
from ldmkit.training.logging.bad_samples import FILE


def pictures(folder: Path) -> None:
    """Twelve pictures of three shapes, and one that is none."""
    folder.mkdir()
    for number in range(12):
        width, height = [(40, 40), (64, 40), (40, 64)][number % 3]
        Image.new("RGB", (width, height), (20 * number, 90, 40)).save(folder / f"{number}.png")
    (folder / "none.png").write_bytes(b"no picture")


@pytest.mark.slow
def test_a_run_with_buckets_ends_and_lists_what_it_could_not_read(
    tmp_path: Path, recipe: Callable[..., Recipe], registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "photos")
    data = {"type": "folder", "path": str(tmp_path / "photos"), "size": 32, "buckets": [[32, 32], [32, 48], [48, 32]]}
    asked = recipe(data=data, conditioners={}, evaluate=["nearest"])
    done = run(asked, tmp_path / "run", registry=registry)
    assert done.status["state"] == "finished"
    said = capsys.readouterr().out
    assert "1 file is left out" in said
    listed = [json.loads(line) for line in (done.path / FILE).read_text().splitlines()]
    assert [Path(entry["path"]).name for entry in listed] == ["none.png"]
    assert list((done.path / "latents").glob("*/shard-00002"))  # one a bucket


def test_a_bucket_that_does_not_divide_is_found_in_the_recipe(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match=r"data\.buckets\.1: 33 is no multiple of"):
        recipe(data={"type": "squares", "size": 32, "buckets": [[32, 32], [32, 33]]})


@pytest.mark.slow
def test_runs_share_what_a_frozen_slot_answers(
    tmp_path: Path, recipe: Callable[..., Recipe], registry: Registry
) -> None:
    changes: dict[str, Any] = {
        "conditioners": {"place": {"freeze": True}},
        "evaluate": [],
        "runtime": {"cache": str(tmp_path / "cache")},
    }
    first = run(recipe(**changes), tmp_path / "a", registry=registry, console=False)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/shard-*/*")}
    assert len({path.parent.parent for path in kept}) == 2  # latents, and what the slot answers
    second = run(recipe(**changes), tmp_path / "b", registry=registry, console=False)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/shard-*/*")} == kept
    plain = run(recipe(**{**changes, "runtime": {"cache": "off"}}), tmp_path / "c", registry=registry, console=False)
    losses = [
        [
            entry["loss"]
            for line in (own.path / "metrics.jsonl").read_text().splitlines()
            if "loss" in (entry := json.loads(line))
        ]
        for own in (first, second, plain)
    ]
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)


def test_a_shuffle_buffer_is_refused_where_resuming_is_proved(
    tmp_path: Path, recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    content = io.BytesIO()
    Image.new("RGB", (32, 32)).save(content, "PNG")
    rows = {"image": [content.getvalue()] * 4}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    data = {
        "type": "huggingface",
        "path": str(tmp_path / "a.parquet"),
        "columns": {"image": "image"},
        "streaming": True,
        "shuffle_buffer": 100,
        "size": 32,
    }
    with pytest.raises(UsageError, match="huggingface mixes samples in a library's shuffle buffer"):
        verify_resume(recipe(data=data, conditioners={}, evaluate=[]), 3, 1, folder=tmp_path / "runs")
