"""What a model can be exported as, said before and after training: what is said to work works, and nothing else is advised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ldmkit
from ldmkit import planning
from ldmkit.assembly import assemble
from ldmkit.errors import UsageError
from ldmkit.interop.assembling import on_meta
from ldmkit.interop.compvis.save import save_compvis
from ldmkit.interop.diffusers.save import save_diffusers
from ldmkit.interop.exporting import export_to
from ldmkit.interop.formats import obstacles, planned
from ldmkit.recipe import Recipe
from tests.interop.conftest import representable
from tests.interop.test_diffusers_pipelines import SLOTS, made

EXPECTED = {"LDMPipeline", "LDMSuperResolutionPipeline", "LDMTextToImagePipeline", "StableDiffusionPipeline"}
UNCONDITIONAL = {
    "name": "faces",
    "data": {"type": "digits", "size": 32},
    "autoencoder": {
        "type": "vq",
        "downsample": 4,
        "channels": 32,
        "groups": 32,
        "blocks": 1,
        "codebook": 16,
        "train": {"steps": 1},
    },
    "denoiser": {
        "channels": 32,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention": [2],
        "head_width": 32,
        "variant": {"groups": 32},
    },
    "train": {"steps": 1},
    "evaluate": [],
}


@pytest.mark.parametrize("name", SLOTS)
def test_what_is_said_of_a_model_is_what_happens(registry, tmp_path, name):
    model = made(registry, name)
    found = obstacles(model)
    assert (found["diffusers"] is None) == (name in EXPECTED)
    for form, save in (("diffusers", save_diffusers), ("compvis", save_compvis)):
        if found[form] is None:
            save(model, tmp_path / form)
        else:
            with pytest.raises(UsageError) as caught:
                save(model, tmp_path / form)
            assert caught.value.message.endswith(found[form])


@pytest.mark.parametrize("name", SLOTS)
def test_a_model_without_numbers_is_told_the_same(registry, name):
    model = made(registry, name)
    with on_meta():
        empty = assemble(model.config, registry)
    scale = float(model.autoencoder.latent_scale[0])
    assert obstacles(planned(empty, scale)) == obstacles(model)


def test_plan_says_what_a_recipe_can_be_exported_as(registry, tmp_path):
    recipe = Recipe.parse(UNCONDITIONAL)
    assert planning.plan(recipe, registry).obstacles == {"hub": None, "diffusers": None, "compvis": None}
    wide = Recipe.parse({**UNCONDITIONAL, "autoencoder": {**UNCONDITIONAL["autoencoder"], "scale": "per-channel"}})
    assert "in each channel" in str(planning.plan(wide, registry).obstacles["diffusers"])
    model = ldmkit.build(ldmkit.fit(recipe))
    model.autoencoder.latent_scale.fill_(0.5)
    for form in ("diffusers", "compvis", "hub"):
        export_to(model.eval(), tmp_path / form, form, run=tmp_path)


@pytest.mark.parametrize("name", ["class", "superres"])
def test_bundled_recipes_are_told_before_training_and_advised_what_works(registry, tmp_path, name):
    recipe = ldmkit.load_recipe(name)
    found = planning.plan(recipe, registry).obstacles
    assert [form for form, reason in found.items() if reason is None] == ["hub"]
    model = ldmkit.build(ldmkit.fit(recipe)).eval()
    for form in ("diffusers", "compvis"):
        with pytest.raises(UsageError) as caught:
            export_to(model, tmp_path / form, form, run=Path("nowhere"))
        assert caught.value.hint == "supported: --format hub"
        assert not (tmp_path / form).exists()


def test_a_refusal_advises_the_other_layout_where_it_works(registry, tmp_path):
    model = representable(registry, {"class": {"type": "class", "options": {"classes": 5, "width": 24}}})
    with pytest.raises(UsageError, match="no text encoder") as caught:
        export_to(model, tmp_path / "out", "diffusers", run=tmp_path)
    assert caught.value.hint == "supported: --format hub and --format compvis"
    with torch.no_grad():
        export_to(model, tmp_path / "out", "compvis", run=tmp_path)
