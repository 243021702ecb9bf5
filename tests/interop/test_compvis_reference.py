"""The two reference checkpoints at every stage, against what the original implementation computed from them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import ldmkit
from ldmkit.errors import RecipeError, UsageError
from ldmkit.interop import import_compvis, load_compvis
from tests.reference import compvis

TOLERANCE = 1e-4  # of the expected tensor's standard deviation
OPTIONS = {"superres": {}, "class": {"null_class": 10}}
BOTH = pytest.mark.parametrize("name", ["superres", "class"])
WEIGHTS = pytest.mark.parametrize("weights", ["raw", "ema"])


def load(name, weights="ema", **options):
    folder = compvis() / name
    return load_compvis(folder / "model.ckpt", folder / "config.yaml", weights=weights, **{**OPTIONS[name], **options})


@pytest.fixture(scope="module")
def models():
    return {(name, weights): load(name, weights) for name in OPTIONS for weights in ("raw", "ema")}


@pytest.fixture(scope="module")
def expected():
    return {name: load_file(compvis() / name / "io.safetensors") for name in OPTIONS}


def assert_close(found, wanted):
    difference = float((found - wanted).abs().max() / wanted.std())
    print(f"{difference:.2g}")
    assert difference < TOLERANCE


def values(model, io):
    (slot,) = model.conditioners
    return {slot: io["cond_raw"]}


@BOTH
@torch.no_grad()
def test_the_autoencoder_agrees(models, expected, name):
    model, io = models[name, "ema"], expected[name]
    assert_close(model.autoencoder.encode(io["image"]), io["latent"])
    assert_close(model.autoencoder.decode(io["latent"]), io["decoded"])


@BOTH
def test_the_conditioning_stage_agrees(models, expected, name):
    model, io = models[name, "ema"], expected[name]
    found = model.condition(values(model, io))
    assert_close(found.tokens if found.concat is None else found.concat, io["cond"])
    if "uncond" in io:
        assert_close(model.condition(values(model, io), drop=list(model.conditioners)).tokens, io["uncond"])


@BOTH
@WEIGHTS
@torch.no_grad()
def test_the_noise_agrees(models, expected, name, weights):
    model, io = models[name, weights], expected[name]
    found = model.predict_noise(io["z_t"], io["t"], model.condition(values(model, io)))
    assert_close(found, io[f"{weights}.eps"])


@BOTH
@WEIGHTS
def test_ten_ddim_steps_agree(models, expected, name, weights):
    model, io = models[name, weights], expected[name]
    given = {"noise": io["noise"], "steps": 10}
    assert_close(model.sample(values(model, io), output="latent", **given), io[f"{weights}.ddim10"])
    images = model.sample(values(model, io), output="tensor", **given)
    assert_close(images, io[f"{weights}.ddim10.image"].clamp(-1, 1))


@WEIGHTS
def test_guidance_and_plms_agree(models, expected, weights):
    model, io = models["class", weights], expected["class"]
    given = {"noise": io["noise"], "steps": 10, "output": "latent"}
    assert_close(model.sample(values(model, io), guidance=3.0, **given), io[f"{weights}.ddim10.cfg3"])
    # By name alone: the grid is the model's, whatever samples it.
    assert_close(model.sample(values(model, io), sampler="plms", **given), io[f"{weights}.plms10"])
    by_name = model.sample(values(model, io), sampler="ddim", **given)
    assert torch.equal(by_name, model.sample(values(model, io), **given))


def test_averaged_and_raw_weights_are_both_read_and_differ(models):
    raw = models["class", "raw"].denoiser.state_dict()
    averaged = models["class", "ema"].denoiser.state_dict()
    assert raw.keys() == averaged.keys()
    assert not torch.equal(raw["out.2.weight"], averaged["out.2.weight"])


def test_every_key_found_its_place(tmp_path):
    folder = compvis() / "superres"
    found = import_compvis(folder / "model.ckpt", folder / "config.yaml")
    assert found.report.complete
    assert found.raw is not None
    assert len(found.report.matched) + len(found.report.ignored) == 535


@BOTH
def test_the_result_is_an_ordinary_model(models, expected, name, tmp_path):
    model, io = models[name, "ema"], expected[name]
    model.save(tmp_path / "saved")
    again = ldmkit.load(tmp_path / "saved")
    given = {"noise": io["noise"], "steps": 2, "output": "latent"}
    assert torch.equal(again.sample(values(again, io), **given), model.sample(values(model, io), **given))


def test_without_a_null_class_guidance_is_refused(expected):
    model = load("class", null_class=None)
    with pytest.raises((UsageError, RecipeError), match="never"):
        model.sample({next(iter(model.conditioners)): 3}, steps=1, guidance=3.0)


def test_heads_can_be_said(expected):
    model, io = load("class", heads=1), expected["class"]
    found = model.predict_noise(io["z_t"], io["t"], model.condition(values(model, io)))
    assert (found - io["ema.eps"]).abs().max() / io["ema.eps"].std() > 10 * TOLERANCE


def test_a_null_class_for_a_model_without_classes_is_refused():
    with pytest.raises(UsageError, match="knows no classes"):
        load("superres", null_class=3)
