"""Runs that have not come to their end are read too, and finished ones at other moments and lengths of average."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldmkit import cli
from ldmkit.errors import CheckpointError, DataError, UsageError
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.runs.directory import RECIPE
from ldmkit.runs.loading import load
from ldmkit.runs.run import run
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.stop import Interrupted

Recipes = Callable[..., Recipe]
PLAIN = {"conditioners": {}, "evaluate": [], "train__post_hoc": {"every": 2}, "train__validate_every": 1}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in step 3 of 4 of its last stage."""
    return tmp_path_factory.mktemp("stopped") / "tiny"


@pytest.fixture
def place(stopped: Path, tmp_path: Path, recipe: Recipes, registry: Registry, watcher: Any) -> Path:
    """A copy of that run."""
    if not stopped.exists():

        def interrupt(stage: str, step: int) -> None:
            if (stage, step) == ("diffusion", 3):
                watcher.at = lambda stage, step: None
                signal.raise_signal(signal.SIGTERM)

        watcher.at = interrupt
        with pytest.raises(Interrupted):
            run(recipe(**PLAIN), stopped, registry=registry, console=False)
    return Path(shutil.copytree(stopped, tmp_path / "tiny"))


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_a_run_that_was_stopped_gives_its_newest_average(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="the average weights of step 3 of 4, from its checkpoint"):
        model = load(place)
    newest = Checkpoints(place / "checkpoints" / "diffusion").newest()
    assert newest is not None
    own = model.state_dict()
    for name, value in newest.tensors("ema").items():
        assert torch.equal(own[name], value)
    raw = load(place, "raw", note=lambda text: None).state_dict()
    assert all(torch.equal(raw[name], value) for name, value in newest.tensors("model").items())
    assert float(model.autoencoder.latent_scale[0]) != 1.0
    model.autoencoder.check_statistics()
    assert call("sample", place, "-n", 1, "--steps", 2) == 0
    said = capsys.readouterr()
    assert "1 pictures in" in said.out
    assert f"note: {place}: the average weights of step 3 of 4" in said.err


def test_other_checkpoints_by_name_and_step(place: Path) -> None:
    scores = {c.step: c.manifest["score"] for c in Checkpoints(place / "checkpoints" / "diffusion").all()}
    assert set(scores) == {2, 3}
    best = min(scores, key=lambda step: scores[step])
    notes: list[str] = []
    for which in ("best", 2, "newest"):
        load(place, checkpoint=which, note=notes.append)  # type: ignore[arg-type]
    assert [f"step {step} of 4" in note for step, note in zip((best, 2, 3), notes, strict=True)] == [True] * 3
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 1\n  there are 2, 3"):
        load(place, checkpoint=1)
    with pytest.raises(UsageError, match="no run's directory"):
        load(place / "samples", checkpoint="best")
    assert call("sample", place, "--checkpoint", "latest") == 2


def test_a_run_that_has_not_reached_its_last_stage_says_so(place: Path) -> None:
    shutil.rmtree(place / "checkpoints" / "diffusion")
    with pytest.raises(CheckpointError, match="no checkpoint of its diffusion stage yet"):
        load(place)
    assert call("sample", place) == 2
    (place / RECIPE).unlink()
    with pytest.raises(CheckpointError, match="there is no trained model"):
        load(place)


def test_it_goes_on_to_a_model_with_averages_of_any_length(
    place: Path, recipe: Recipes, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    from ldmkit.training.posthoc import SNAPSHOTS, reconstruct

    run(recipe(**PLAIN), place, registry=registry, console=False)
    capsys.readouterr()
    assert call("ema", place, "--sigma-rel", 0.1) == 0
    assert "averaged over 0.1 of the training up to step 4" in capsys.readouterr().out
    expected = reconstruct(place / "checkpoints" / "diffusion" / SNAPSHOTS, 0.1).tensors
    made = load(place / "post-hoc" / "0.1").state_dict()
    finished = load(place).state_dict()
    assert all(torch.equal(made[name], value) for name, value in expected.items())
    assert any(not torch.equal(made[name], finished[name]) for name in expected)
    assert all(torch.equal(made[name], value) for name, value in finished.items() if name.startswith("autoencoder."))
    assert call("ema", place, "--sigma-rel", 0.5) == 2
    assert "at most 0.2887, a flat average" in capsys.readouterr().err


def test_other_data_are_noticed_before_they_are_trained_on(
    place: Path, recipe: Recipes, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.data_sources.load("squares"), "contents", lambda self: {"new.png": "1"})
    with pytest.raises(DataError, match=r"not those that the run in .* began with"):
        run(recipe(**PLAIN), place, registry=registry, console=False)
    finished = run(recipe(**PLAIN), place, accept_new_data=True, registry=registry, console=False)
    assert finished.status["state"] == "finished"
