"""Any mix of slots in one model: several of one type, another port by one word, none at all, samples that lack some."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

import ldmkit
from ldmkit import hookimpl, plugins
from ldmkit.assembly import build, datasets, fit
from ldmkit.data import Dataset, Field, Info, Source, batches
from ldmkit.data.sources.scenes.source import ScenesSource
from ldmkit.errors import DataError, UsageError
from ldmkit.evaluation import Evaluation
from ldmkit.evaluation.metrics import Subsets
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.recipe import Recipe, load
from ldmkit.runs.run import run
from ldmkit.training.logging.log import read

Tiny = Callable[..., dict[str, Any]]


class Described(Source):
    """Scenes with a title beside the caption; every third has no label, and every other one no title."""

    def __init__(self, *, count: int = 12) -> None:
        self.scenes = ScenesSource(count=count, held_out=4, size=16)

    def info(self) -> Info:
        known = self.scenes.info()
        return replace(known, fields={**known.fields, "title": Field("text")})

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        sample = self.scenes[index]
        return {
            "image": sample["image"],
            "caption": sample["caption"],
            "title": None if index % 2 else f"scene with {int(sample['shapes'])} shapes",
            "label": None if index % 3 == 0 else sample["label"],
        }

    def split(self, part: str) -> Source:
        twin = Described()
        twin.scenes = self.scenes.split("train" if part == "train" else "validation")
        return twin


class Plugin:
    @hookimpl
    def ldmkit_register_data_sources(self, register: Any) -> None:
        register("described", Described)


@pytest.fixture(scope="module")
def registry() -> plugins.Registry:
    return plugins.load(only=["class", "text", "semantic-map"], extra=[Plugin()])


def made(value: Mapping[str, Any], registry: plugins.Registry) -> LatentDiffusion:
    recipe = Recipe.parse(value, registry=registry)
    return lively(build(fit(recipe, registry), registry))


def lively(model: LatentDiffusion) -> LatentDiffusion:
    """The UNet's last layer starts at zero, which would hide what goes in."""
    torch.manual_seed(0)
    for parameter in model.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


TEXT = {"length": 20, "depth": 1, "heads": 1}


def test_two_slots_of_one_type_read_other_fields_with_tokens_of_other_widths(tiny, registry, tmp_path):
    slots = {
        "text": {**TEXT, "width": 16},
        "heading": {"type": "text", "fields": {"caption": "title"}, **TEXT, "width": 8},
        "class": {"port": "vector", "width": 4},
        "again": {"type": "class", "width": 5},
    }
    recipe = Recipe.parse(tiny(conditioners=slots) | {"data": {"type": "described", "size": 16, "count": 12}})  # fmt: skip
    result = run(recipe, tmp_path / "run", registry=registry, console=False)
    model = ldmkit.load(result.path, registry=registry)
    conditioners = model.conditioners
    assert conditioners.context_width == 16
    assert dict(conditioners.fields["heading"]) == {"caption": "title"}
    words = [json.loads(conditioners[slot].vocabulary)["model"]["vocab"] for slot in ("text", "heading")]
    assert "shapes" in words[1]
    assert "shapes" not in words[0]
    # the same parameter names in every slot, each under its own: two plugins cannot collide
    names = set(conditioners.state_dict())
    assert {f"{slot}.transformer.norm.weight" for slot in ("text", "heading")} <= names
    assert {f"{slot}.embedding.weight" for slot in ("class", "again")} <= names
    widths = {slot: conditioners._token_projections[slot].weight.shape for slot in conditioners._token_projections}
    assert widths == {"heading": (16, 8), "again": (16, 5)}
    known = Described()[0]
    given = model.condition({"text": known["caption"], "heading": known["title"], "class": 0, "again": 1})
    assert given.tokens is not None
    assert given.tokens.shape == (1, 20 + 20 + 1, 16)
    # samples that lacked a modality were trained with its null, and the share that had it is logged
    lines = [line for line in read(result.path / "metrics.jsonl") if "present/heading" in line]
    assert {line["present/text"] for line in lines} == {1.0}
    assert 0.0 < sum(line["present/heading"] for line in lines) / len(lines) < 1.0


def test_a_row_that_lacks_a_modality_has_the_loss_of_one_whose_condition_was_dropped(tiny, registry):
    model = made(tiny(conditioners={"class": {"width": 4}}), registry).eval()
    samples = [{"image": torch.rand(3, 16, 16) * 2 - 1, "label": i % 4} for i in range(3)]
    batch = model.batch(samples)
    lacking = model.batch([samples[0], {**samples[1], "label": None}, samples[2]])
    draws = model.draw(batch.positions, seed=1)
    kept = replace(draws, dropped={"class": torch.tensor([False, False, False])})
    dropped = replace(draws, dropped={"class": torch.tensor([False, True, False])})
    without = model.batch([samples[0], {"image": samples[1]["image"]}, samples[2]])
    assert torch.equal(model.losses(lacking, kept)[0], model.losses(without, kept)[0])
    with pytest.raises(DataError, match="slot class reads label, and the samples have image"):
        model.batch([{"image": sample["image"]} for sample in samples])
    assert torch.equal(model.losses(lacking, kept)[0], model.losses(batch, dropped)[0])
    assert not torch.equal(model.losses(lacking, kept)[0], model.losses(batch, kept)[0])


@pytest.mark.parametrize("port", ["tokens", "vector"])
def test_the_class_goes_by_tokens_or_vector_at_one_word(tiny, registry, port):
    model = made(tiny(conditioners={"class": {"width": 6, "port": port}}), registry)
    assert model.conditioners.context_width == (6 if port == "tokens" else 0)
    assert model.conditioners.has_vector == (port == "vector")
    noisy, t = torch.randn(1, 3, 16, 16), torch.tensor([500.0])
    with torch.no_grad():
        first, second = (model.predict_noise(noisy, t, model.condition({"class": c})) for c in (0, 3))
    assert float((first - second).abs().max()) > 1e-4
    draws = replace(model.draw([0], 0), dropped={"class": torch.tensor([False])})
    loss, _ = model(model.batch([{"image": torch.rand(3, 16, 16), "label": 2}]), draws)
    loss.backward()
    assert float(model.conditioners["class"].embedding.weight.grad[2].abs().sum()) > 0


def test_a_recipe_without_conditioners_trains_and_samples(tiny, registry, tmp_path):
    result = run(Recipe.parse(tiny(conditioners={})), tmp_path / "run", registry=registry, console=False)
    model = ldmkit.load(result.path, registry=registry)
    assert len(model.conditioners) == 0
    assert not (result.path / "model" / "nulls.safetensors").exists()
    images = model.sample(count=2, seed=1, output="tensor")
    assert images.shape == (2, 3, 16, 16)
    torch.testing.assert_close(images[1:], model.sample(count=1, seed=2, output="tensor"), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="the slots of this model are none: it is unconditional"):
        model.sample({"class": 1})
    with pytest.raises(UsageError, match="no conditions to be guided by"):
        model.sample(count=1, guidance=2.0)


def test_a_real_small_picture_of_any_size_is_enlarged_by_the_scale(tiny):
    found = plugins.load(only=["low-res"])
    model = made(tiny(data__size=24, conditioners={"low_res": {"scale": 3, "dropout": 0.0}}), found)
    picture = Image.effect_noise((7, 5), 80).convert("RGB")
    images = model.sample({"low_res": picture}, steps=2, output="tensor")
    assert images.shape == (1, 3, 15, 21)
    seen = model.condition({"low_res": picture}).concat
    assert seen is not None
    assert seen.shape == (1, 3, 15, 21)
    assert model.sample({"low_res": picture}, steps=1)[0].size == (21, 15)


# The bundled joint recipe


@pytest.fixture(scope="module")
def joint() -> tuple[LatentDiffusion, Dataset, Dataset]:
    registry = plugins.load()
    recipe = fit(load("joint", ["data.count=24", "data.held_out=8"], registry=registry), registry)
    train, held_out = datasets(recipe, registry)
    model = build(recipe, registry)
    torch.nn.init.normal_(model.denoiser.out[2].weight, std=0.02)  # it starts at zero, and would hide what goes in
    return model, train, held_out


ALL = frozenset({"text", "semantic_map", "class"})


def test_the_joint_recipe_has_every_port_and_trains_every_subset(joint):
    model, _, _ = joint
    ports = {
        slot: {p for p in ("tokens", "vector", "concat") if getattr(c.emits, p)}
        for slot, c in model.conditioners.items()
    }
    assert ports == {"text": {"tokens"}, "semantic_map": {"concat"}, "class": {"vector"}}
    trained = model.conditioners.dropout.trained
    assert len(trained) == 2 ** len(ALL)
    assert frozenset() in trained
    assert ALL in trained


def test_the_joint_recipe_steps(joint):
    model, train, _ = joint
    (batch,) = batches(train, model.conditioners, start=0, batch=4, seed=0, steps=1)
    draws = model.draw(batch.positions, 0)
    draws = replace(draws, dropped={slot: torch.tensor([False, False, False, True]) for slot in draws.dropped})
    parameters = [*model.denoiser.parameters(), *model.conditioners.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    model.train()
    losses = []
    for _ in range(4):
        loss, parts = model(batch, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {name: float(value) for name, value in parts.items() if name != "loss"} == {f"present/{s}": 1.0 for s in ALL}
    for slot, conditioner in model.conditioners.items():
        assert all(float(p.grad.abs().sum()) > 0 for p in conditioner.parameters() if p.ndim > 1), slot


def test_dropping_one_leaves_the_others_as_they_are(joint):
    model, train, _ = joint
    model.eval()
    sample = train.sample(0)
    values = {"text": sample["caption"], "semantic_map": sample["map"].numpy(), "class": "wood"}
    whole = model.condition(values)
    for slot, port in (("text", "tokens"), ("semantic_map", "concat"), ("class", "vector")):
        without = model.condition(values, drop=(slot,))
        for name in ("tokens", "concat", "vector"):
            assert torch.equal(getattr(whole, name), getattr(without, name)) == (name != port)


@pytest.mark.parametrize("given", [("text",), ("semantic_map",), ("class",), ("text", "class"), ()])
def test_any_subset_samples_with_a_scale_for_each_slot(joint, given):
    model, train, _ = joint
    sample = train.sample(0)
    every = {"text": sample["caption"], "semantic_map": sample["map"].numpy(), "class": "wood"}
    values = {slot: every[slot] for slot in given}
    settings = {"count": 1, "steps": 1, "seed": 4, "output": "latent"}
    images = model.sample(values, **settings)  # by the recipe's own guidance, a scale a slot
    assert torch.isfinite(images).all()
    assert model.sampling["guidance"] == {"class": 1.0, "semantic_map": 1.5, "text": 3.0}
    if len(given) == 1:  # what is absent is null in every branch: one scale is left
        scale = model.sampling["guidance"][given[0]]
        torch.testing.assert_close(images, model.sample(values, guidance=scale, **settings), rtol=1e-4, atol=1e-4)


def test_each_condition_is_measured_alone_together_and_with_others_dropped(joint):
    model, train, held_out = joint
    evaluation = Evaluation(model, train, held_out, n=4, steps=1, guidance=1.0)
    figures = {figure.slot: figure for figure in Subsets(count=4).compute(evaluation)}
    assert set(figures) == ALL
    assert set(figures["text"].beside) == {"all given", "without semantic_map", "without class"}
    assert figures["class"].title == "ground recognised, given alone"
    assert all(0.0 <= value <= 1.0 for f in figures.values() for value in (f.value, *f.beside.values()))


def test_a_subset_that_training_never_dropped_is_not_sampled(tiny, registry):
    slots = {"text": {**TEXT, "width": 8}, "class": {"width": 8}}
    model = made(tiny(conditioners=slots) | {"dropout": {"text": 0.2, "class": 0.1}}, registry)
    caption = ScenesSource(count=1, size=16)[0]["caption"]
    with pytest.raises(UsageError, match=r"no value was given for text\+class, and training never showed"):
        model.sample(count=1)
    with pytest.raises(UsageError, match="which training never showed: it dropped class, text"):
        model.sample({"text": caption, "class": 1}, guidance=2.0)
    # the class is not given, and guiding by the text would need a picture without both
    with pytest.raises(
        UsageError, match=r"this guidance needs a picture without text\+class, which training never showed"
    ):
        model.sample({"text": caption}, guidance={"text": 2.0})
    images = model.sample({"text": caption}, guidance=1.0, output="tensor")
    assert images.shape == (1, 3, 16, 16)
