"""A recipe without `train` trains and judges an autoencoder, and says what does not apply."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ldmkit
from ldmkit.errors import CheckpointError, RecipeError
from ldmkit.interop.diffusers.autoencoder_folder import load_autoencoder
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from tests.runs.conftest import RECIPE

ALONE = {key: value for key, value in RECIPE.items() if key in ("name", "data", "sample")}
VQ = {**RECIPE["autoencoder"], "type": "vq", "codebook": 16, "latent_channels": 3}


def alone(**changes: Any) -> Recipe:
    return Recipe.parse({**ALONE, "autoencoder": VQ, "evaluate": ["reconstruction", "psnr"], **changes})


def test_it_is_trained_judged_saved_and_used(
    tmp_path: Path, registry: Registry, recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    found = ldmkit.run(alone(), out=tmp_path / "ae", registry=registry)
    said = capsys.readouterr().out
    assert "psnr: not measured: needs a diffusion model, and this run has an autoencoder alone" in said
    assert "denoiser" not in said
    assert {"reconstruction-psnr", "reconstruction-ssim", "codes-in-use", "codebook-perplexity"} <= set(found.metrics)
    assert 1 <= found.metrics["codebook-perplexity"] <= 16 * found.metrics["codes-in-use"] + 1e-9
    text = found.report.read_text(encoding="utf-8")
    assert "A VQ autoencoder for 32 x 32" in text
    assert "What the autoencoder loses" in text
    trained = load_autoencoder(tmp_path / "ae")
    with pytest.raises(CheckpointError, match="an autoencoder alone"):
        ldmkit.load(tmp_path / "ae")

    whole = recipe(autoencoder={"from": str(tmp_path / "ae")}, evaluate=[])
    second = ldmkit.run(whole, out=tmp_path / "whole", registry=registry, console=False)
    state = second.model.autoencoder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in trained.state_dict().items() if "latent_" not in name)


def test_the_same_command_says_that_it_is_finished_and_more_steps_extend_it(
    tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    ldmkit.run(alone(), out=tmp_path, registry=registry, console=False)
    before = load_autoencoder(tmp_path).state_dict()
    ldmkit.run(alone(), out=tmp_path, registry=registry)
    assert "is finished" in capsys.readouterr().out
    longer = alone(autoencoder={**VQ, "train": {**VQ["train"], "steps": 5}})
    found = ldmkit.run(longer, out=tmp_path, registry=registry, console=False)
    assert found.status["done"] == 5
    assert any(not torch.equal(before[name], value) for name, value in load_autoencoder(tmp_path).state_dict().items())
    assert len(list((tmp_path / "evaluations").iterdir())) == 2


def test_nothing_to_evaluate_is_the_reconstruction(tmp_path: Path, registry: Registry) -> None:
    found = ldmkit.run(alone(evaluate=[]), out=tmp_path, registry=registry, console=False)
    assert "reconstruction-psnr" in found.metrics


@pytest.mark.parametrize("section", ["conditioners", "denoiser"])
def test_a_diffusion_model_without_training_is_an_error(section: str) -> None:
    with pytest.raises(RecipeError, match=rf"train: missing; {section} (is|are) for the diffusion model"):
        alone(**{section: RECIPE[section]})


def test_the_resolved_recipe_is_read_again() -> None:
    one = alone()
    assert one.alone
    assert Recipe.parse(one.resolved()) == one
    assert "denoiser" not in one.resolved()
