"""Recipes that start from a trained model: step 0 is the source's, bit for bit, for every port a new condition may come by."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import ldmkit
from ldmkit import plugins
from ldmkit.data import Field, Info, Source
from ldmkit.errors import CheckpointError, RecipeError
from ldmkit.interop.diffusers.autoencoder_folder import save_autoencoder
from ldmkit.plugins.hookspecs import hookimpl
from ldmkit.recipe import Recipe
from ldmkit.runs.run import run
from tests.interop.conftest import SMALL, Hint, assembled, first_step


class Shades(Source):
    """Grey pictures; how grey is the hint."""

    def info(self) -> Info:
        return Info(count=8, fields={"image": Field("image"), "hint": Field("number")})

    def __getitem__(self, index: int) -> dict[str, Any]:
        from PIL import Image

        return {"image": Image.new("RGB", (16, 16), (30 * index, 90, 160)), "hint": float(index)}

    def split(self, part: str) -> Source:
        return self


class Plugin:
    @hookimpl
    def ldmkit_register_conditioners(self, register):
        register("hint", Hint)

    @hookimpl
    def ldmkit_register_data_sources(self, register):
        register("shades", Shades)


@pytest.fixture(scope="module")
def registry():
    return plugins.load(only=(), extra=[Plugin()])


@pytest.fixture(scope="module")
def source(registry, tmp_path_factory):
    """A trained model with one condition, on a schedule and a scale that no default has."""
    torch.manual_seed(0)
    model = assembled(
        registry,
        {"old": {"type": "hint", "options": {"vector": 5, "seen": 3}}},
        std=0.2,
        size=[16, 16],
        autoencoder={"type": "kl", "downsample": 2, "channels": 8, "blocks": 1, "latent_channels": 4, "groups": 4},
        denoiser=SMALL,
        diffusion={"schedule": {"type": "linear", "start": 0.001, "end": 0.0205}, "prediction": "v", "loss": "l1"},
        dropout={"old": 0.2},
    )
    with torch.no_grad():
        model.autoencoder.latent_scale.fill_(0.7)
    folder = tmp_path_factory.mktemp("source") / "model"
    model.save(folder, raw={f"denoiser.{n}": p + 0.01 for n, p in model.denoiser.named_parameters()})
    return folder


def recipe(source, slots=None, **changes):
    training = {"steps": 2, "batch": 2, "lr": 1e-30, "ema": 0.5, "weight_decay": 0.0, "checkpoint_every": 1}
    value = {
        "name": "tuned",
        "init": {"from": str(source)},
        "data": {"type": "shades", "size": 16},
        "conditioners": {"old": {"type": "hint", "vector": 5, "dropout": 0.2}, **(slots or {})},
        "train": training,
        "sample": {"steps": 2, "count": 1},
        **changes,
    }
    return Recipe.parse(json.loads(json.dumps(value)))


HINTS = {"old": 1.5, "new": 1.5}
PORTS = {"concat": {}, "vector": {}, "tokens": {"denoiser": {"variant": {"plain_attention": True}}}}


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_run_begins_where_the_source_is(registry, source, tmp_path, port, weights):
    """A learning rate that no weight can feel: what a run of two steps leaves is what it started with."""
    told = recipe(source, {"new": {"type": "hint", port: 6}}, **PORTS[port])
    told = Recipe.parse({**told.document.value, "init": {"from": str(source), "weights": weights}})
    run(told, tmp_path / "run", registry=registry, console=False)
    tuned = ldmkit.load(tmp_path / "run", registry=registry)
    trained = ldmkit.load(source, weights, registry=registry)
    assert list(tuned.conditioners) == ["old", "new"]
    assert torch.equal(first_step(tuned, HINTS), first_step(trained, HINTS))
    picture = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(tuned.autoencoder.encode(picture), trained.autoencoder.encode(picture))


@pytest.mark.parametrize("port", PORTS)
def test_what_is_new_learns(registry, source, tmp_path, port):
    told = recipe(source, {"new": {"type": "hint", port: 6}}, **PORTS[port])
    training = {**told.document.value["train"], "lr": 1e-3, "steps": 3}
    run(Recipe.parse({**told.document.value, "train": training}), tmp_path / "run", registry=registry, console=False)
    tuned = ldmkit.load(tmp_path / "run", "raw", registry=registry)
    answers = [tuned.sample({"old": 1.0, "new": hint}, steps=1, output="latent") for hint in (0.0, 7.0)]
    assert not torch.equal(*answers)


def test_what_the_recipe_leaves_open_is_the_sources(registry, source, tmp_path):
    result = run(recipe(source, denoiser={"dropout": 0.1}), tmp_path / "run", registry=registry, console=False)
    tuned, trained = (ldmkit.load(path, registry=registry).config for path in (result.path, source))
    assert tuned["autoencoder"] == trained["autoencoder"]
    assert tuned["diffusion"] == trained["diffusion"]
    assert tuned["denoiser"] == {**trained["denoiser"], "dropout": 0.1}
    # 8 pictures are here
    assert tuned["conditioners"]["old"]["options"] == {"tokens": 0, "vector": 5, "concat": 0, "seen": 3}


def test_a_recipe_shows_what_it_leaves_open_and_the_run_says_it(registry, source, tmp_path):
    told = recipe(source, denoiser={"dropout": 0.1})
    assert told.resolved()["denoiser"] == {"dropout": 0.1}
    assert told.resolved()["autoencoder"] == {"from": str(source)}
    result = run(told, tmp_path / "run", registry=registry, console=False)
    card = (result.path / "model/README.md").read_text()
    for part in ("library_name: ldmkit", "- hint", "`shades`, images of 16 pixels", "name: tuned", "dropout: 0.1"):
        assert part in card


def test_the_resolved_recipe_needs_nobody_to_say_it_again(registry, source, tmp_path):
    first = run(recipe(source), tmp_path / "run", registry=registry, console=False)
    again = Recipe.parse(__import__("yaml").safe_load((first.path / "recipe.resolved.yaml").read_text()))
    assert again.resolved()["denoiser"]["head_width"] == 8
    assert again.resolved()["autoencoder"]["latent_channels"] == 4
    more = recipe(source)
    more = Recipe.parse({**more.document.value, "train": {**more.document.value["train"], "steps": 3}})
    assert run(more, tmp_path / "run", registry=registry, console=False).status["done"] == 3


def test_a_run_that_went_on_does_not_start_over(registry, source, tmp_path):
    """What was learned is in the checkpoint; the source is not copied over it again."""
    told = recipe(source).document.value
    trains = {**told["train"], "lr": 1e-2}
    first = run(Recipe.parse({**told, "train": trains}), tmp_path / "run", registry=registry, console=False)
    before = ldmkit.load(first.path, "raw", registry=registry).denoiser.state_dict()
    run(
        Recipe.parse({**told, "train": {**trains, "steps": 3, "lr": 1e-30}}),
        first.path,
        registry=registry,
        console=False,
    )
    after = ldmkit.load(first.path, "raw", registry=registry).denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_network_is_named(registry, source, tmp_path):
    with pytest.raises(CheckpointError, match="denoiser is not"):
        run(recipe(source, denoiser={"channels": 32}), tmp_path / "run", registry=registry, console=False)
    with pytest.raises(RecipeError, match=r"autoencoder\.type: is vq, and .* has kl"):
        run(recipe(source, autoencoder={"type": "vq"}), tmp_path / "other", registry=registry, console=False)


@pytest.fixture(scope="module")
def first_stage(registry, source, tmp_path_factory):
    """An autoencoder alone, as `ldmkit import` writes it."""
    folder = tmp_path_factory.mktemp("first") / "kl"
    save_autoencoder(ldmkit.load(source, registry=registry).autoencoder, folder)
    return folder


def from_scratch(where, **changes):
    told = {**recipe("").document.value, "autoencoder": {"from": str(where)}, "denoiser": SMALL, **changes}
    del told["init"]
    return Recipe.parse(told)


@pytest.mark.parametrize("alone", [True, False])
def test_an_autoencoder_from_a_folder_of_its_own_or_from_a_model(registry, source, first_stage, tmp_path, alone):
    where = first_stage if alone else source
    result = run(from_scratch(where), tmp_path / "run", registry=registry, console=False)
    mine, trained = (ldmkit.load(path, registry=registry).autoencoder for path in (result.path, source))
    assert mine.config == trained.config
    theirs = trained.state_dict()
    same = {n: v for n, v in mine.state_dict().items() if not n.startswith("latent_")}
    assert all(torch.equal(value, theirs[name]) for name, value in same.items())
    assert float(mine.latent_scale[0]) != float(trained.latent_scale[0])  # measured on the new pictures
    with pytest.raises(CheckpointError, match="an autoencoder alone"):
        ldmkit.load(first_stage, registry=registry)


def test_a_model_to_start_from_and_an_autoencoder_of_its_own(registry, source, first_stage, tmp_path):
    result = run(
        recipe(source, autoencoder={"from": str(first_stage)}), tmp_path / "run", registry=registry, console=False
    )
    assert ldmkit.load(result.path, registry=registry).config["autoencoder"]["type"] == "kl"


def test_no_model_to_start_from(registry, first_stage, tmp_path):
    with pytest.raises(CheckpointError, match="no denoiser in"):
        run(recipe(first_stage), tmp_path / "run", registry=registry, console=False)
    with pytest.raises(CheckpointError, match="no trained model in"):
        run(recipe(tmp_path / "nothing"), tmp_path / "run", registry=registry, console=False)
