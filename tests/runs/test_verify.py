from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldmkit import cli
from ldmkit.errors import ResourceError, UsageError
from ldmkit.recipe import Recipe
from ldmkit.runs.resume_check import Verification, _compare, _first, shortened, verify_resume
from tests.conftest import ended, started
from tests.runs.conftest import FEW


class Forking:
    """The first process as it is; the others are forked by a server, as their imports alone would take longer than their runs."""

    def __init__(self) -> None:
        self.begun = 0

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.begun += 1
        if self.begun == 1:
            return subprocess.run(command, **options)
        _, flag, code, arguments = command

        def act() -> None:
            sys.argv = [flag, arguments]
            exec(code, {})

        return subprocess.CompletedProcess(command, ended(started(act)), "", "")


@pytest.mark.slow
def test_a_run_killed_in_both_stages_ends_with_the_same_bits(
    tmp_path: Path, recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    forking = Forking()
    monkeypatch.setattr("ldmkit.runs.resume_check.subprocess", forking)
    plain = recipe(data=FEW, conditioners={}, evaluate=[])
    found = verify_resume(plain, 3, 1, folder=tmp_path / "runs")
    assert found.same, found.different
    assert forking.begun == 4  # whole, killed in each of two stages, and on to the end
    stages = {name.partition("/")[0] for name in found.files}
    assert stages == {"autoencoder", "first-stage", "scale", "diffusion"}
    assert "diffusion/ema.safetensors" in found.files


def test_what_cannot_be_verified(recipe: Callable[..., Recipe]) -> None:
    for n, k in ((3, 3), (3, 0)):
        with pytest.raises(UsageError, match="between 1 and n - 1"):
            verify_resume(recipe(), n, k)


def test_the_recipe_is_shortened_and_nothing_else(recipe: Callable[..., Recipe]) -> None:
    short = shortened(recipe(), 9, 4)
    assert (short.train.steps, short.train.checkpoint_every, short.evaluate) == (9, 4, [])
    assert short.autoencoder.train is not None
    assert short.autoencoder.train.steps == 9
    assert short.denoiser == recipe().denoiser
    assert short.seed == recipe().seed


def test_what_waits_for_a_later_step_begins_before_the_kill(recipe: Callable[..., Recipe]) -> None:
    """Else six steps would say nothing about the discriminator's optimizer, or that of a slot which is frozen at first."""
    game = {"perceptual": None, "adversarial": {"start": 5000, "layers": 1, "channels": 8}}
    vq = {**recipe().resolved()["autoencoder"], "type": "vq", "codebook": 16, "revive": 100, "loss": game}
    slow = recipe(autoencoder=vq, conditioners={"place": {"freeze": 1000, "places": 4}})
    short = shortened(slow, 9, 4)
    assert short.autoencoder.loss.adversarial.start == 3
    assert short.autoencoder.revive == 3
    assert short.conditioners["place"].freeze == 3
    early = recipe(conditioners={"place": {"freeze": True, "places": 4}})  # the game starts with step 2 there
    assert shortened(early, 9, 4).autoencoder.loss.adversarial.start == 2
    assert shortened(early, 9, 4).conditioners["place"].freeze is True


def test_no_place_for_the_runs(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    plain = recipe(data={"type": "digits", "size": 32}, conditioners={})
    with pytest.raises(ResourceError, match=r"no directory can be made for the two runs: Not a directory"):
        verify_resume(plain, 3, 1, folder=tmp_path / "file" / "runs")


def test_a_difference_is_named() -> None:
    found = Verification(3, 1, {"diffusion/ema.safetensors": ("a", "b"), "diffusion/model.safetensors": ("c", "c")})
    assert not found.same
    assert found.different == ["diffusion/ema.safetensors"]
    assert not Verification(3, 1, {}).same


def saved(folder: Path, stage: str, weight: float) -> None:
    from ldmkit.training.checkpointing.checkpoints import Checkpoints

    tensors = {"model": {"a": torch.ones(3), "b": torch.tensor([1.0, weight])}}
    Checkpoints(folder / "checkpoints" / stage).save(3, tensors, {"step": 3})


def test_the_first_tensor_that_differs_is_named(tmp_path: Path) -> None:
    for run, weight in (("whole", 1.0), ("parts", 1.5)):
        saved(tmp_path / run, "autoencoder", 2.0)
        saved(tmp_path / run, "diffusion", weight)
    files = _compare(tmp_path / "whole", tmp_path / "parts")
    assert [name for name, (one, other) in files.items() if one != other] == ["diffusion/model.safetensors"]
    first = _first(tmp_path / "whole", tmp_path / "parts", files)
    assert first == "diffusion/model.safetensors: b differs by up to 0.5"
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "diffusion")
    files = _compare(tmp_path / "whole", tmp_path / "parts")
    assert _first(tmp_path / "whole", tmp_path / "parts", files) == "diffusion/model.safetensors"


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("as_json", [True, False])
def test_the_command(
    same: bool, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []

    def verified(recipe: Recipe, n: int, k: int, **options: Any) -> Verification:
        given.extend((recipe.name, n, k))
        files = {"diffusion/ema.safetensors": ("a" * 64, ("a" if same else "b") * 64)}
        return Verification(n, k, files, None if same else "diffusion/ema.safetensors: w differs by up to 0.5")

    monkeypatch.setattr("ldmkit.runs.resume_check.verify_resume", verified)
    with pytest.raises(SystemExit) as stop:
        cli.main(["verify-resume", "superres", "--steps", "5", "--at", "2", *(["--json"] if as_json else [])])
    assert stop.value.code == (0 if same else 1)
    assert given == ["superres", 5, 2]
    said = capsys.readouterr()
    if as_json:
        assert json.loads(said.out)["same"] is same
    elif same:
        assert "the same bits after 5 steps of each stage, killed after 2" in said.out
    else:
        assert "DIFFERS" in said.out
        assert "different bits: diffusion/ema.safetensors: w differs by up to 0.5" in said.err
