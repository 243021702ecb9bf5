"""Files, names, `extends`, overrides, defaults, and back to YAML."""

from __future__ import annotations

import json

import pytest

from ldmkit import plugins
from ldmkit.errors import RecipeError
from ldmkit.recipe import Recipe, bundled, find, load


def test_defaults_are_written_out_and_read_back_equal(good):
    recipe = load(good)
    resolved = recipe.resolved()
    assert resolved["schema"] == 1
    assert resolved["train"]["ema"] == 0.9999
    assert resolved["denoiser"]["multipliers"] == [1, 2, 4]
    assert resolved["diffusion"]["schedule"] == {
        "type": "linear", "timesteps": 1000, "zero_snr": False, "shift": 1.0, "start": 0.0015, "end": 0.0195,
    }  # fmt: skip
    again = good.with_name("again.yaml")
    again.write_text(recipe.to_yaml())
    assert load(again) == recipe


@pytest.mark.parametrize("name", sorted(bundled()))
def test_bundled_recipes_are_valid_with_their_components_and_read_back_equal(name, tmp_path):
    registry = plugins.load()
    recipe = load(name, registry=registry)
    path = tmp_path / "again.yaml"
    path.write_text(recipe.to_yaml())
    assert load(path, registry=registry) == recipe


def test_a_slots_type_is_its_name(good):
    recipe = load(good, ["conditioners.semantic_map=null", "conditioners.class.classes=3"])
    assert {slot: section.type for slot, section in recipe.conditioners.items()} == {
        "low_res": "low-res",
        "semantic_map": "semantic-map",
        "class": "class",
    }
    assert recipe.conditioners["class"].options == {"classes": 3}


def test_the_name_is_the_files_unless_it_is_given(good):
    text = good.read_text().removeprefix("name: small\n")
    other = good.with_name("my recipe!.yaml")
    other.write_text(text)
    assert load(good).name == "small"
    assert load(other).name == "my-recipe"


def test_overrides(good):
    recipe = load(
        good,
        [
            "train.lr=3e-4",
            "data.type=folder",
            "data.size=[64, 128]",
            "data.path=/a #b: c",
            "evaluate.1=lpips",
            "sample.guidance=a+b",
            "seed=7",
        ],
    )
    assert recipe.train.lr == 3e-4
    assert recipe.data.shape == (64, 128)
    assert recipe.data.options["path"] == "/a #b: c"
    assert [metric.type for metric in recipe.evaluate] == ["psnr", "lpips"]
    assert recipe.sample.guidance == "a+b"
    assert recipe.seed == 7


def test_extends_replaces_key_by_key(good):
    child = good.with_name("child.yaml")
    child.write_text(
        "extends: recipe.yaml\ntrain: {lr: 5e-4}\nconditioners:\n  class: {classes: 2}\nevaluate: [lpips]\n"
    )
    recipe, base = load(child), load(good)
    assert recipe.name == "child"
    assert (recipe.train.steps, recipe.train.lr) == (base.train.steps, 5e-4)
    assert list(recipe.conditioners) == ["low_res", "class"]
    assert [metric.type for metric in recipe.evaluate] == ["lpips"]


def test_a_bundled_recipe_can_be_extended(tmp_path):
    child = tmp_path / "mine.yaml"
    child.write_text("extends: superres\ntrain: {steps: 3}\n")
    assert load(child).train.steps == 3


def test_null_takes_a_slot_away(good):
    assert load(good, ["conditioners.low_res=null", "sample.guidance=1.0"]).conditioners == {}


def test_a_section_that_changes_its_type_loses_the_options_of_the_old_one(good):
    recipe = load(good, ["data.held_out=[coffee]", "autoencoder.codebook=512"])
    assert recipe.data.options == {"held_out": ["coffee"], "grey": False}
    changed = good.with_name("changed.yaml")
    changed.write_text(recipe.to_yaml())
    again = load(
        changed, ["data.path=~/photos", "data.type=folder", "autoencoder.type=kl", "diffusion.schedule=cosine"]
    )
    assert (again.data.type, again.data.options["path"], again.data.size) == ("folder", "~/photos", 64)
    assert "held_out" not in again.data.options
    assert (again.autoencoder.type, again.autoencoder.train) == ("kl", recipe.autoencoder.train)
    assert again.diffusion.schedule.type == "cosine"


def test_with_from_the_trained_autoencoder_decides_what_is_left_open(good):
    recipe = load(good, ["autoencoder={from: runs/other}", "data.size=63"])
    assert (
        "channels"
        not in Recipe.parse({**recipe.document.value, "autoencoder": {"from": "runs/x"}}).resolved()["autoencoder"]
    )


def test_a_sources_own_way_of_cutting_is_written_out_unless_the_recipe_says_otherwise(good):
    registry = plugins.load()
    defaults = registry.data_sources.load("photos").view_defaults
    assert defaults
    resolved = load(good, ["data.views=3"], registry=registry).resolved()["data"]
    assert resolved["views"] == 3
    assert resolved["crop"] == defaults["crop"]
    assert resolved["held_out"] == ["chelsea", "coffee"]


def test_learned_options_are_added_and_kept(good):
    recipe = load(good, ["conditioners.class=null"])
    fitted = recipe.updated({"conditioners.class.classes": ["a", "b"]})
    assert fitted.conditioners["class"].options == {"classes": ["a", "b"]}
    assert recipe.conditioners["class"].options == {}
    complete = fitted.validate_components(plugins.load())
    assert complete.resolved()["conditioners"]["class"]["classes"] == ["a", "b"]
    assert fitted.where("conditioners", "low_res") == f"{good}:9:3"


def test_errors_about_one_key_have_its_place(good):
    error = load(good).error("is wrong", "autoencoder", "downsample", hint="mend it")
    assert str(error) == f"{good}:5:3: autoencoder.downsample: is wrong\n  mend it"


def test_secrets_are_hidden_in_what_is_printed_and_asked_for_when_read(good):
    recipe = load(good, ["data.type=somebodys", "data.hub_token=abc"])
    assert recipe.data.options["hub_token"] == "abc"
    saved = good.with_name("saved.yaml")
    saved.write_text(recipe.to_yaml())
    assert "abc" not in saved.read_text()
    with pytest.raises(RecipeError, match=r"give it: --set data.hub_token=\.\.\."):
        load(saved)
    assert load(saved, ["data.hub_token=abc"]) == recipe


def test_bundled_recipes_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("superres").name == "superres.yaml"
    (tmp_path / "superres.yaml").write_text("name: mine")
    assert find("superres.yaml").read_text() == "name: mine"


def test_the_schema_covers_every_section():
    schema = Recipe.json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert set(schema["properties"]) >= {"data", "autoencoder", "conditioners", "extends", "train"}
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Train"]["properties"]["steps"] == {"minimum": 1, "title": "Steps", "type": "integer"}
