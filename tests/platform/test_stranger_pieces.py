"""The package of docs/reference/denoisers-and-losses.md: built, installed, trained with, resumed, loaded with and without it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import ldmkit
from ldmkit.errors import CheckpointError, PluginError
from ldmkit.training.optim import Group, Made, Optimization

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "denoisers-and-losses.md"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
PROJECT = """
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "ldmkit-pieces"
version = "2.0.1"
dependencies = ["ldmkit"]

[project.entry-points.ldmkit]
pieces = "ldmkit_pieces"

[tool.hatch.build.targets.wheel]
packages = ["ldmkit_pieces"]
"""
RUN = """
import sys, ldmkit
recipe, out, *overrides = sys.argv[1:]
ldmkit.run(ldmkit.load_recipe(recipe, overrides), out, console=False)
"""
PROBE = """
import sys, ldmkit, torch
from safetensors.torch import save_file
run, copy, out = sys.argv[1:]
ldmkit.load(run).save(copy)
model = ldmkit.load(copy)
save_file({"sample": model.sample(count=2, seed=3, steps=2, output="tensor")}, out)
print(type(model.denoiser).__name__, type(model.autoencoder).__name__)
"""


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(PAGE.read_text("utf-8")) if kind == language]


def package(place: Path) -> Path:
    """The page's examples as files, each under the path in its first line."""
    for text in blocks("python"):
        if text.startswith("# ldmkit_pieces/"):
            path = place / text.partition("\n")[0].removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    (place / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def stranger(
    tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., dict[str, Any]], wheels: Any
) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("pieces")
    site = wheels.installed(wheels.assembled(package(place / "source"), place / "dist"), place / "site")
    (chosen,) = blocks("yaml")
    recipe = {**tiny(name="pieces"), **yaml.safe_load(chosen)}
    recipe["train"] = {**tiny()["train"], **recipe["train"]}
    recipe["autoencoder"]["train"] |= {"checkpoint_every": 1, "log_every": 1, "validate_every": 100}
    (place / "pieces.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (place / "run.py").write_text(RUN)
    (place / "probe.py").write_text(PROBE)

    def call(*arguments: str, fails: bool = False) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *arguments]
        result = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert (result.returncode != 0) == fails, result.stderr + result.stdout
        return result.stdout + result.stderr

    call("run.py", "pieces.yaml", "whole")
    call("run.py", "pieces.yaml", "halves", "autoencoder.train.steps=4", "train.steps=2")
    call("run.py", "pieces.yaml", "halves")
    said = call("probe.py", "whole", "copy", "samples.safetensors")
    return {"place": place, "call": call, "said": said}


def newest(run: Path, stage: str) -> Path:
    return sorted((run / "checkpoints" / stage).glob("step-*"))[-1]


def test_all_four_trained(stranger):
    assert stranger["said"].split() == ["Mixer", "Patches"]
    rows = [json.loads(line) for line in (stranger["place"] / "whole" / "metrics.jsonl").read_text().splitlines()]
    first = [row for row in rows if row.get("stage") == "autoencoder" and "loss" in row]
    second = [row for row in rows if row.get("stage") == "diffusion" and "loss" in row]
    assert all("losses/flip_equivariance" in row and "losses/align" not in row for row in first)
    # `until: 3`: the steps before the third are done with the term
    assert [("losses/align" in row) for row in second] == [True, True, True, False]
    for row in second[:3]:
        assert row["loss"] == pytest.approx(row["diffusion"] + 0.1 * row["losses/align"], rel=1e-5)
    checkpoint = newest(stranger["place"] / "whole", "diffusion")
    assert set(load_file(checkpoint / "losses.safetensors")) == {"align.project.weight", "align.project.bias"}
    momenta = load_file(checkpoint / "model-optimizer.safetensors")
    assert "denoiser.layers.0.weight:momentum_buffer" in momenta
    assert "denoiser.layers.0.bias:momentum_buffer" not in momenta  # split by module and shape


def test_it_resumes_bit_for_bit(stranger):
    """Two steps and two more are four: weights, averages, the loss's own parameters and the optimizer's state."""
    for stage in ("autoencoder", "diffusion"):
        whole, halves = (newest(stranger["place"] / run, stage) for run in ("whole", "halves"))
        assert whole.name == halves.name
        for file in sorted(whole.glob("*.safetensors")):
            ours, theirs = load_file(file), load_file(halves / file.name)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours), file.name


def test_the_model_is_saved_without_the_losses_and_loads_elsewhere(stranger):
    config = json.loads((stranger["place"] / "copy" / "config.json").read_text())
    assert config["denoiser"] == {"type": "mixer", "width": 8, "depth": 2}
    assert config["autoencoder"] == {"type": "patches", "image_channels": 3, "side": 2, "latent_channels": 4}
    origin = {"distribution": "ldmkit-pieces", "version": "2.0.1", "entry_point": "pieces"}
    assert config["origins"] == {"autoencoder": origin, "denoiser": origin}
    names = {name.partition(".")[0] for name in load_file(stranger["place"] / "copy" / "model.safetensors")}
    assert names == {"autoencoder", "denoiser"}
    assert load_file(stranger["place"] / "samples.safetensors")["sample"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize("which", ["whole", "copy"])
def test_without_the_package_loading_names_it(stranger, which):
    with pytest.raises(PluginError) as caught:
        ldmkit.load(stranger["place"] / which)
    assert "the model's autoencoder is 'patches' of ldmkit-pieces 2.0.1, which cannot be loaded" in str(caught.value)
    assert caught.value.hint == "pip install ldmkit-pieces==2.0.1"


def test_without_the_package_a_recipe_names_every_piece(stranger):
    from ldmkit import plugins

    with pytest.raises(PluginError) as caught:
        ldmkit.load_recipe(stranger["place"] / "pieces.yaml").validate_components(plugins.load())
    text = str(caught.value)
    for said in ("no autoencoder is called 'patches'", "no denoiser is called 'mixer'", "no loss is called 'align'"):
        assert said in text
    assert text.count("no optimizer is called 'split-momentum'") == 2


def test_options_of_the_pieces_are_checked_with_their_place(stranger):
    said = stranger["call"]("-m", "ldmkit", "run", "pieces.yaml", "--set", "denoiser.widht=3", "--out", "x", fails=True)
    assert "--set denoiser.widht=3: denoiser.widht: unknown key; did you mean 'width'?" in said
    said = stranger["call"]("-m", "ldmkit", "plugins", "list")
    assert re.search(r"mixer +denoiser +ldmkit-pieces +2\.0\.1", said)
    said = stranger["call"]("-m", "ldmkit", "plugins", "check", "mixer")
    assert said == "mixer keeps its contract\n"
    said = stranger["call"]("-m", "ldmkit", "plan", "pieces.yaml")
    assert "mixer" in said


def test_a_layer_that_is_not_there_is_named_before_training(stranger):
    said = stranger["call"](
        "-m", "ldmkit", "run", "pieces.yaml", "--set", "losses.align.layer=layers.7", "--out", "y", fails=True
    )
    assert "Mixer has no layer 'layers.7'; did you mean 'layers." in said


def test_another_optimizers_state_is_refused(stranger):
    net = torch.nn.Linear(2, 2)
    group = Group(dict(net.named_parameters()))
    ours = Optimization([group], lr=0.1, steps=1)
    states = load_file(newest(stranger["place"] / "whole", "diffusion") / "model-optimizer.safetensors")
    with pytest.raises(CheckpointError, match="the optimizer's state is split-momentum's, and this is adamw"):
        ours.load(states)
    mine = Made("mine", lambda groups: torch.optim.SGD([given.argument() for given in groups]))
    theirs = Optimization([group], lr=0.1, steps=1, optimizer=mine)
    with pytest.raises(CheckpointError, match="split-momentum's, and this is mine"):
        theirs.load(states)
    with pytest.raises(CheckpointError, match="that of one of the core's, and this is mine"):
        theirs.load(ours.tensors())
