"""A model as people use it in their own code: copies, sizes, arrays, lists, a recipe that is a dict."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ldmkit
from ldmkit.errors import UsageError
from ldmkit.latent_diffusion import SampledImages
from ldmkit.latent_diffusion.arguments import sides

RECIPE = {
    "data": {"type": "scenes", "size": 16, "count": 20, "held_out": 8},
    "autoencoder": {"type": "identity"},
    "conditioners": {"class": {"classes": ["cat", "dog", "owl"], "width": 16, "dropout": 0.1}},
    "denoiser": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "heads": 2, "variant": {"groups": 4}},
    "train": {"steps": 2, "batch": 4},
    "sample": {"steps": 2},
    "evaluate": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> ldmkit.LatentDiffusion:
    torch.manual_seed(0)
    model = ldmkit.build(ldmkit.load_recipe(RECIPE))
    for parameter in model.denoiser.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.05)
    return model.eval()


def sampled(model, values, **settings) -> torch.Tensor:
    return model.sample(values, output="tensor", **settings)


def test_a_recipe_that_is_a_dict_says_what_its_file_says(tmp_path):
    recipe = ldmkit.load_recipe({"extends": "class", "train": {"steps": 7}}, ["train.batch=4"])
    file = tmp_path / "run.yaml"
    file.write_text("extends: class\ntrain: {steps: 7}\n")
    assert recipe.resolved() == ldmkit.load_recipe(file, ["train.batch=4"]).resolved()
    with pytest.raises(ldmkit.RecipeError, match=r"train\.stepz: unknown key; did you mean 'steps'"):
        ldmkit.load_recipe({"train": {"stepz": 1}})
    given = {"data": {"type": "folder", "path": Path("photos")}}
    assert ldmkit.load_recipe({"extends": "class", **given}).data.options["path"] == "photos"
    assert given == {"data": {"type": "folder", "path": Path("photos")}}  # as it was


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "average"])
def test_a_copy_samples_the_same_and_holds_no_registry(model, how):
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    elif how == "torch.save":
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    else:
        twin = torch.optim.swa_utils.AveragedModel(model).module
    assert torch.equal(sampled(twin, {"class": 1}), sampled(model, {"class": 1}))
    with torch.no_grad():
        twin.denoiser.out[-1].weight.zero_()
    assert not torch.equal(sampled(twin, {"class": 1}), sampled(model, {"class": 1}))  # its weights are its own
    assert b"pluggy" not in pickle.dumps(model)


def test_a_size_is_one_number_or_two(model):
    assert torch.equal(sampled(model, {"class": 1}, size=16), sampled(model, {"class": 1}, size=(16, 16)))
    assert sampled(model, {"class": 1}, size=(16, 24)).shape[2:] == (16, 24)
    assert sides(np.int64(8)) == (8, 8)
    for wrong in (16.0, "16", (16,), (16, 0), True, [1, 2, 3]):
        with pytest.raises(UsageError, match=r"size is .*one whole number of pixels, or"):
            model.sample({"class": 1}, size=wrong)


@pytest.mark.parametrize("wrong", [{"steps": 2.5}, {"seed": 1.5}, {"count": 1.5}, {"seed": "1"}])
def test_whole_numbers_are_whole(model, wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=f"{name} is .*; it is a whole number"):
        model.sample({"class": 1}, **{"steps": 2, **wrong})


def test_several_values_in_every_form(model):
    expected = sampled(model, [{"class": 0}, {"class": 2}])
    forms = (["cat", "owl"], (0, 2), np.array([0, 2]), torch.tensor([0, 2]), np.array(["cat", "owl"]))
    for several in forms:
        assert torch.equal(sampled(model, {"class": several}), expected)
    alone, named = (model.condition({"class": value}).tokens for value in (torch.tensor(2), "owl"))
    assert torch.equal(alone, named)
    with pytest.raises(UsageError, match="count is 3, but class holds 2 rows"):
        model.sample({"class": [0, 2]}, count=3)
    with pytest.raises(UsageError, match="give a mapping"):
        model.sample("cat")
    with pytest.raises(UsageError, match="give a mapping"):
        model.sample(["cat", "owl"])


def test_a_list_of_prompts_is_one_an_image_and_a_list_of_ids_is_one_prompt():
    recipe = ldmkit.fit(
        ldmkit.load_recipe({**RECIPE, "conditioners": {"text": {"width": 16, "depth": 1, "length": 8}}})
    )
    model = ldmkit.build(recipe).eval()
    several = model.condition({"text": ["a red circle", "a blue square"]}).tokens
    assert several is not None
    for row, prompt in enumerate(("a red circle", "a blue square")):
        one = model.condition({"text": prompt}).tokens
        torch.testing.assert_close(several[row], one[0])
    assert len(model.condition({"text": [3, 4, 5]}).tokens) == 1
    assert torch.equal(model.condition({"text": several}).tokens, several)  # embeddings, one an image
    shorter = model.condition({"text": [several[0, :3], several[1, :3]]}).tokens
    assert torch.equal(shorter, several[:, :3])
    with pytest.raises(UsageError, match=r"an embedding of a prompt is \(l, 16\), 1 to 8 tokens; given: \(8, 15\)"):
        model.condition({"text": several[:, :, :15]})


def test_pictures_as_arrays(model):
    pixels = np.random.RandomState(0).randint(0, 255, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    keep = np.zeros((16, 16), bool)
    keep[:, :8] = True
    mask = Image.fromarray(keep.astype(np.uint8) * 255)
    settings = {"steps": 2, "strength": 0.5}
    by_array = sampled(model, {"class": 1}, image=pixels, keep=keep, **settings)
    assert torch.equal(by_array, sampled(model, {"class": 1}, image=image, keep=mask, **settings))
    kept = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(by_array[0, :, :, :8], kept[:, :, :8])
    for wrong in (pixels.astype(float), pixels[None], pixels[..., :2]):
        with pytest.raises(UsageError, match=r"an array is \(h, w\) or \(h, w, c\) of uint8"):
            model.sample({"class": 1}, image=wrong, **settings)


@pytest.mark.parametrize("steps", [3, 7, 27, 30, 49, 999])
def test_the_strength_that_the_hint_names_is_accepted(steps):
    from ldmkit.samplers import ddim, img2img
    from ldmkit.schedules import make

    schedule, zeros = make(type="linear"), torch.zeros(1, 1, 1, 1)
    with pytest.raises(UsageError, match="leaves no step") as caught:
        img2img(ddim, lambda x, t: x, zeros, zeros, schedule, steps, strength=0.5 / steps)
    named = float((caught.value.hint or "").rpartition(" ")[2])
    img2img(ddim, lambda x, t: x, zeros, zeros, schedule, steps, strength=named)


def test_an_unfitted_recipe_names_the_slot():
    conditioners = {"animal": {"type": "class"}}
    with pytest.raises(ldmkit.RecipeError, match=r"slot animal: the classes are not known"):
        ldmkit.build(ldmkit.load_recipe({**RECIPE, "conditioners": conditioners}))


def test_encode_takes_a_generator(model):
    from ldmkit.autoencoder import KLAutoencoder

    autoencoder = KLAutoencoder(downsample=2, channels=8, multipliers=(1, 2), blocks=1, latent_channels=2, groups=4)
    images = torch.zeros(1, 3, 16, 16)
    one, two = (autoencoder.encode(images, generator=torch.Generator().manual_seed(s)) for s in (1, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, autoencoder.encode(images))


def test_what_sampling_returns_is_the_list_of_today_and_knows_more(model):
    images = model.sample({"class": ["cat", "dog", "owl"]}, seed=5, steps=1)
    assert isinstance(images, list)
    assert isinstance(images, SampledImages)
    assert [image.size for image in images] == [(16, 16)] * 3
    assert images.seeds == [5, 6, 7]
    assert [row["class"] for row in images.conditions] == ["cat", "dog", "owl"]
    last = images[1:]
    assert (len(last), last.seeds) == (2, [6, 7])
    again = model.sample(last.conditions[1], seed=last.seeds[1], steps=1)
    # Another batch size rounds otherwise: by a grey level at most.
    assert np.abs(np.asarray(again[0], int) - np.asarray(images[2], int)).max() <= 1
    assert list(images) == [*images[:1], *last]
    sent = pickle.loads(pickle.dumps(images))
    assert sent.conditions == images.conditions
    assert images.grid(columns=3).size == (3 * 18 - 2, 16)


def test_it_shows_itself_in_a_notebook(model):
    images = model.sample({"class": ["cat", "<b>dog"[3:]]}, seed=5, steps=1)
    images.conditions[1] = {"class": "<b>"}
    page = images._repr_html_()
    assert page.count("data:image/png;base64,") == 2
    assert "seed 5" in page
    assert "class: cat" in page
    assert "<b>" not in page  # what a person gave is text
    shown = model._repr_html_()
    for fact in ("class", "ClassConditioner", "16 x 16", "ddim"):
        assert fact in shown
