from __future__ import annotations

import io
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldmkit.errors import CheckpointError, DataError, PluginError, RecipeError, ResourceError
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.runs.directory import RunDirectory, read_status
from ldmkit.runs.run import run
from ldmkit.training.logging.console import Console
from ldmkit.training.logging.log import read
from ldmkit.training.stop import Interrupted

Recipes = Callable[..., Recipe]
Bits = Callable[[Path, str], dict[str, str]]


class Terminal:
    """Collects what a person would read."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.console = Console(file=self.file)

    @property
    def text(self) -> str:
        return self.file.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run, to be copied."""
    return tmp_path_factory.mktemp("finished") / "tiny"


@pytest.fixture
def whole(finished: Path, recipe: Recipes, registry: Registry) -> Path:
    if not finished.exists():
        run(recipe(), finished, registry=registry, console=False)
    return finished


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def test_from_recipe_to_report(tmp_path: Path, recipe: Recipes, registry: Registry, watcher: Any) -> None:
    screen = Terminal()
    result = run(recipe(), tmp_path / "tiny", registry=registry, console=screen.console)
    assert watcher.told[0] == "started"
    assert watcher.told[-1] == "finished"
    assert [told for told in watcher.told if told.startswith("diffusion")][:1] == ["diffusion 1"]
    assert result.status["state"] == "finished"
    assert (result.status["done"], result.status["exit_code"], result.status["error"]) == (4, 0, None)
    assert result.status["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert set(result.metrics) == {"psnr"}
    for name in ("recipe.resolved.yaml", "metrics.jsonl", "report.html", "evaluation.json", "model/config.json"):
        assert (result.path / name).is_file(), name
    with Image.open(result.path / "samples" / "latest.png") as latest:
        assert latest.width > 64
    assert {line["stage"] for line in read(result.path / "metrics.jsonl")} == {"autoencoder", "diffusion"}
    assert list((result.path / "tensorboard" / "diffusion").iterdir())
    assert "squares, 32x32: 24 pictures; held out: 24 pictures" in screen.text
    assert "autoencoder 3 steps of 4, then diffusion 4 steps of 4, then evaluation" in screen.text
    assert f"ldmkit sample {result.path}" in screen.text
    assert "PSNR" in screen.text


def test_the_directory_alone_gives_the_model_and_runs_again(
    copy: Path, tmp_path: Path, registry: Registry, bits: Bits
) -> None:
    from ldmkit.assembly import load

    average, raw = load(copy, registry=registry), load(copy, "raw", registry=registry)
    assert not torch.equal(next(average.denoiser.parameters()), next(raw.denoiser.parameters()))
    assert float(average.autoencoder.latent_scale[0]) != 1.0
    again = run(copy / "recipe.resolved.yaml", tmp_path / "again", registry=registry, console=False)
    for stage in ("first-stage", "diffusion"):
        assert bits(again.path, stage) == bits(copy, stage)


def test_a_finished_run_says_so_and_does_nothing(copy: Path, recipe: Recipes, registry: Registry, watcher: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file() and path.name != ".lock"}
    screen = Terminal()
    result = run(recipe(), copy, registry=registry, console=screen.console)
    assert screen.text.startswith(f"{copy} is finished: {copy / 'report.html'}")
    assert watcher.told == []
    assert before == {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file() and p.name != ".lock"}
    assert result.metrics


def test_more_steps_extend_it(copy: Path, recipe: Recipes, registry: Registry, watcher: Any) -> None:
    screen = Terminal()
    run(recipe(train__steps=6, train__lr=5e-4), copy, registry=registry, console=screen.console)
    assert "changed: train.steps: 4 -> 6" in screen.text
    assert "changed: train.lr: 0.001 -> 0.0005" in screen.text
    assert "diffusion: continuing from step 4" in screen.text
    assert [told for told in watcher.told if "autoencoder" in told] == []
    assert next(told for told in watcher.told if "diffusion" in told) == "diffusion 5"
    assert read_status(copy)["done"] == 6


def test_another_evaluation_trains_nothing(copy: Path, recipe: Recipes, registry: Registry, watcher: Any) -> None:
    result = run(recipe(evaluate=["psnr", "ssim"]), copy, registry=registry, console=False)
    assert set(result.metrics) == {"psnr", "ssim"}
    assert not any("diffusion" in told for told in watcher.told)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"data__size": 64}, "data.size: 32 -> 64"),
        ({"denoiser__channels": 16}, "denoiser.channels: 8 -> 16"),
        ({"seed": 3}, "seed: 0 -> 3"),
        ({"autoencoder__latent_channels": 3}, "autoencoder.latent_channels: 2 -> 3"),
        ({"conditioners": {}}, "conditioners.place"),
        ({"conditioners__place__dropout": 0.5}, "conditioners.place.dropout: 0.2 -> 0.5"),
        ({"diffusion": {"prediction": "v"}}, "diffusion.prediction"),
    ],
)
def test_another_model_or_other_data_are_refused(
    copy: Path, recipe: Recipes, registry: Registry, change: dict[str, Any], text: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        run(recipe(**change), copy, registry=registry, console=False)
    assert text in str(caught.value)
    assert "--out" in str(caught.value)
    assert "--fresh" in str(caught.value)
    assert read_status(copy)["state"] == "finished"


def test_more_steps_of_the_autoencoder_are_refused_once_diffusion_began(
    copy: Path, recipe: Recipes, registry: Registry
) -> None:
    with pytest.raises(RecipeError, match="the diffusion stage has begun on an autoencoder of 3 steps"):
        run(recipe(autoencoder__train__steps=9, train__steps=5), copy, registry=registry, console=False)


def test_fresh_renames_and_deletes_nothing(copy: Path, recipe: Recipes, registry: Registry, bits: Bits) -> None:
    expected = bits(copy, "diffusion")
    run(recipe(denoiser__channels=16), copy, fresh=True, registry=registry, console=False)
    moved = copy.with_name("tiny.1")
    assert bits(moved, "diffusion") == expected
    assert read_status(moved)["state"] == "finished"
    assert bits(copy, "diffusion") != expected
    assert (copy / "report.html").is_file()


@pytest.mark.parametrize(("stage", "step"), [("autoencoder", 2), ("diffusion", 1), ("diffusion", 3), ("diffusion", 4)])
@pytest.mark.parametrize("how", ["signal", "crash"])
def test_an_interrupted_run_ends_with_the_same_bits(
    tmp_path: Path,
    whole: Path,
    recipe: Recipes,
    registry: Registry,
    watcher: Any,
    bits: Bits,
    stage: str,
    step: int,
    how: str,
) -> None:
    place = tmp_path / "tiny"

    def interrupt(seen: str, at: int) -> None:
        if (seen, at) == (stage, step):
            watcher.at = lambda seen, at: None  # a second signal would act at once
            if how == "crash":
                raise RuntimeError("the power is gone")
            signal.raise_signal(signal.SIGTERM)

    watcher.at = interrupt
    screen = Terminal()
    if how == "crash":
        with pytest.raises(PluginError, match="the power is gone"):
            run(recipe(), place, registry=registry, console=screen.console)
        assert read_status(place)["state"] == "failed"
        assert watcher.told[-1] == "PluginError"
    else:
        with pytest.raises(Interrupted) as caught:
            run(recipe(), place, registry=registry, console=screen.console)
        assert caught.value.exit_code == 143
        assert "the same command continues" in screen.text
        status = read_status(place)
        assert (status["state"], status["exit_code"], status["error"]["code"]) == ("interrupted", 143, "interrupted")
        assert (place / "checkpoints" / stage / f"step-{step:08d}").is_dir()
        assert watcher.told[-1] == "Interrupted"
    watcher.at = lambda seen, at: None
    result = run(recipe(), place, registry=registry, console=False)
    assert result.status["state"] == "finished"
    assert result.status["error"] is None
    for kind in ("autoencoder", "first-stage", "diffusion"):
        assert bits(place, kind) == bits(whole, kind), kind
    assert result.metrics == pytest.approx(json_metrics(whole))


def json_metrics(path: Path) -> dict[str, float]:
    return {figure["name"]: figure["value"] for figure in json.loads((path / "evaluation.json").read_text())["figures"]}


def test_two_processes_in_one_directory(copy: Path, recipe: Recipes, registry: Registry) -> None:
    with RunDirectory(copy), pytest.raises(ResourceError, match=r"in use by process \d+ on .* since"):
        run(recipe(), copy, registry=registry, console=False)


def test_a_place_that_cannot_be_written_is_refused_before_anything(
    tmp_path: Path, recipe: Recipes, registry: Registry, watcher: Any
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="--out"):
        run(recipe(), tmp_path / "file" / "run", registry=registry, console=False)
    with pytest.raises(ResourceError):
        run(recipe(), tmp_path / "file", registry=registry, console=False)
    with pytest.raises(ResourceError):
        run(recipe(), tmp_path / ("x" * 300), registry=registry, console=False)
    assert watcher.told == []


def test_an_error_in_the_data_is_in_the_status(tmp_path: Path, recipe: Recipes, registry: Registry) -> None:
    with pytest.raises(DataError):
        run(recipe(data__count=0, conditioners={}), tmp_path / "tiny", registry=registry, console=False)
    status = read_status(tmp_path / "tiny")
    assert (status["state"], status["exit_code"], status["error"]["code"]) == ("failed", 2, "data")


def test_memory_that_runs_out_says_what_helps(
    tmp_path: Path, recipe: Recipes, registry: Registry, watcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldmkit.runs import stages

    def full(self: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(stages.Stages, "execute", full)
    with pytest.raises(ResourceError, match=r"smaller train\.batch"):
        run(recipe(), tmp_path / "tiny", registry=registry, console=False)


def test_a_trained_autoencoder_is_taken_over(
    copy: Path, tmp_path: Path, recipe: Recipes, registry: Registry, watcher: Any
) -> None:
    section = {**recipe().resolved()["autoencoder"], "from": str(copy)}
    section.pop("train")
    result = run(recipe(autoencoder=section), tmp_path / "second", registry=registry, console=False)
    assert not any("autoencoder" in told for told in watcher.told)
    from ldmkit.assembly import load

    mine = load(result.path, registry=registry).autoencoder
    assert result.model.autoencoder.weights_hash() == mine.weights_hash()  # whose plugin is nowhere installed
    assert mine.weights_hash() == load(copy, registry=registry).autoencoder.weights_hash()


def test_a_run_that_has_no_model_yet_says_so(tmp_path: Path, recipe: Recipes, registry: Registry) -> None:
    from ldmkit.runs.run import Run

    with pytest.raises(CheckpointError):
        _ = Run(tmp_path, recipe()).model
