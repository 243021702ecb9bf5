"""A whole run on two processes: one directory, one voice, the files of a run on one."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldmkit.errors import DataError, RecipeError, ResourceError
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.runs.directory import RunDirectory, read_status
from ldmkit.runs.run import run
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.logging.console import Console
from ldmkit.training.logging.log import read
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.stop import Interrupted

InRanks = Callable[..., list[Any]]
Recipes = Callable[..., Recipe]
GAME = {"perceptual": None, "adversarial": {"start": 2, "layers": 1, "channels": 8, "norm": "group"}}


def files(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    found.discard("precision.json")  # one process measures which precision is the fastest
    return {name for name in found if not name.startswith(("tensorboard/", "latents/", "conditions/"))}


def judge_few() -> None:
    """What `few_are_judged` patches, in a process that it does not reach."""
    from ldmkit.runs import completion

    completion.EVALUATED = 8


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_make_the_run_that_one_makes(
    recipe: Recipes, registry: Registry, watcher: Any, tmp_path: Path, in_ranks: InRanks, how: str
) -> None:
    asked = recipe(autoencoder__loss=GAME, runtime={"distributed": how})
    run(asked, tmp_path / "one", registry=registry, console=False)
    watcher.told.clear()

    def action(ranks: Ranks) -> tuple[str, list[str], float]:
        judge_few()
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


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launchers_processes_find_each_other(launcher: str, recipe: Recipes, tmp_path: Path) -> None:
    """With the real ones, as far as it needs two processes to say no: what follows is tested without their start-up."""
    asked = recipe(data={"type": "digits", "size": 32}, conditioners={}, train__batch=7)
    (tmp_path / "recipe.yaml").write_text(asked.to_yaml(), "utf-8")
    command = [sys.executable, "-m", *LAUNCHERS[launcher]]
    if launcher == "accelerate":
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            command += ["--main_process_port", str(found.getsockname()[1]), "--mixed_precision", "no"]
        command += ["--dynamo_backend", "no"]
    command += ["-m", "ldmkit", "run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    said = "train.batch: a batch of 7 cannot be shared by 2 processes equally"
    assert (ended.returncode != 0, ended.stderr.count(said)) == (True, 1), ended.stderr


def test_data_that_differ_from_machine_to_machine(
    recipe: Recipes, registry: Registry, tmp_path: Path, in_ranks: InRanks
) -> None:
    def action(ranks: Ranks) -> None:
        asked = recipe(data__count=24 - ranks.rank)  # as where a copy is not complete
        run(asked, tmp_path / "r", registry=registry, console=False)

    first, second = in_ranks(2, action, joined=False)
    assert isinstance(second, DataError)
    assert "there are 23 samples and 23 held out, and the first process sees 24 and 24" in str(second)
    assert isinstance(first, ResourceError)
    assert "rank 1 ended: there are 23 samples" in str(first)


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
