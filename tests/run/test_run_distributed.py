"""A whole run on two processes: one directory, one voice, the files of a run on one."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldmkit.errors import RecipeError, ResourceError
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.run import run
from ldmkit.rundir import RunDirectory, read_status
from ldmkit.training.checkpoint import Checkpoints
from ldmkit.training.console import Console
from ldmkit.training.log import read
from ldmkit.training.ranks import Ranks
from ldmkit.training.stop import Interrupted

InRanks = Callable[..., list[Any]]
Recipes = Callable[..., Recipe]
GAME = {"perceptual": None, "adversarial": {"start": 2, "layers": 1, "channels": 8, "norm": "group"}}


def files(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(("tensorboard/", "latents/", "conditions/"))}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_make_the_run_that_one_makes(
    recipe: Recipes, registry: Registry, watcher: Any, tmp_path: Path, in_ranks: InRanks, how: str
) -> None:
    asked = recipe(autoencoder__loss=GAME, runtime={"distributed": how})
    run(asked, tmp_path / "one", registry=registry, console=False)
    watcher.told.clear()

    def action(ranks: Ranks) -> tuple[str, list[str], float]:
        heard = io.StringIO()
        result = run(asked, tmp_path / "two", registry=registry, console=Console(file=heard))
        return heard.getvalue(), watcher.told, result.metrics["psnr"]

    first, second = in_ranks(2, action, joined=False)
    assert "2 processes with " + {"ddp": "copies", "fsdp": "shards"}[how] in first[0]
    assert "done in" in first[0]
    assert second[0] == "", "one voice"
    assert first[1][0] == "started"
    assert first[1][-1] == "finished"
    assert second[1] == [], "observers are told once"
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert read_status(tmp_path / "two")["state"] == "finished"
    one, two = (
        {(line["stage"], line["step"]): line for line in read(tmp_path / name / "metrics.jsonl")}
        for name in ("one", "two")
    )
    assert set(one) == set(two)
    for key, line in one.items():
        if "loss" in line:
            assert two[key]["loss"] == pytest.approx(line["loss"], rel=1e-5, abs=1e-5), key
    again = in_ranks(2, action, joined=False)
    assert "is finished" in again[0][0]
    assert again[1][0] == ""


def test_a_batch_that_cannot_be_shared(recipe: Recipes, registry: Registry, tmp_path: Path, in_ranks: InRanks) -> None:
    asked = recipe(train__batch=7)
    errors = in_ranks(2, lambda ranks: run(asked, tmp_path / "r", registry=registry, console=False), joined=False)
    assert [type(error) for error in errors] == [RecipeError, RecipeError]
    assert "train.batch: a batch of 7 cannot be shared by 2 processes equally" in str(errors[0])
    assert "6 or 8 can be shared" in str(errors[0])
    assert (errors[0].elsewhere, errors[1].elsewhere) == (False, True), "it is said once"


def test_a_directory_in_use_ends_all(recipe: Recipes, registry: Registry, tmp_path: Path, in_ranks: InRanks) -> None:
    with RunDirectory(tmp_path / "r"):
        errors = in_ranks(
            2, lambda ranks: run(recipe(), tmp_path / "r", registry=registry, console=False), joined=False
        )
    assert isinstance(errors[0], ResourceError)
    assert "is in use by process" in str(errors[0])
    assert str(errors[1]) == str(errors[0])
    assert errors[1].elsewhere


@pytest.mark.slow
def test_a_signal_stops_a_run_that_one_process_continues(
    recipe: Recipes, registry: Registry, watcher: Any, tmp_path: Path, in_ranks: InRanks
) -> None:
    asked = recipe(autoencoder__loss=GAME, train__checkpoint_every=100, train__validate_every=100)

    def action(ranks: Ranks) -> None:
        def at(stage: str, step: int) -> None:
            if (stage, step) == ("diffusion", 2):
                os.kill(os.getpid(), signal.SIGTERM)

        watcher.at = at
        run(asked, tmp_path / "r", registry=registry, console=False)

    errors = in_ranks(2, action, joined=False)
    assert [type(error) for error in errors] == [Interrupted, Interrupted]
    assert [error.elsewhere for error in errors] == [False, True]
    status = read_status(tmp_path / "r")
    assert (status["state"], status["exit_code"]) == ("interrupted", 143)
    newest = Checkpoints(tmp_path / "r" / "checkpoints" / "diffusion").newest()
    assert newest is not None
    assert newest.step == 2
    run(asked, tmp_path / "r", registry=registry, console=False)
    assert read_status(tmp_path / "r")["state"] == "finished"


@pytest.mark.slow
def test_one_that_dies_leaves_a_run_that_says_so_and_continues(
    recipe: Recipes, registry: Registry, tmp_path: Path, in_ranks: InRanks
) -> None:
    asked = recipe(autoencoder__loss=GAME)

    def action(ranks: Ranks) -> None:
        if ranks.rank == 1:
            from ldmkit.training import diffusion

            step = diffusion._step

            def dying(engine: Any, batch: Any, state: Any, *rest: Any) -> Any:
                if state.step == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(engine, batch, state, *rest)

            diffusion._step = dying
        run(asked, tmp_path / "r", registry=registry, console=False)

    error, code = in_ranks(2, action, joined=False)
    assert code == -signal.SIGKILL
    assert isinstance(error, ResourceError)
    status = read_status(tmp_path / "r")
    assert (status["state"], status["exit_code"]) == ("failed", 2)
    assert "another process of this run died" in status["error"]["message"]
    run(asked, tmp_path / "r", registry=registry, console=False)
    assert read_status(tmp_path / "r")["state"] == "finished"
