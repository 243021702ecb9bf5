"""The look at data and conditioners before anything is trained: what is wrong is named before the first stage, not after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ldmkit import hookimpl, plugins
from ldmkit.assembly import build, datasets
from ldmkit.conditioning import Conditioner
from ldmkit.errors import PluginError
from ldmkit.recipe import Recipe
from ldmkit.runs.run import run
from ldmkit.training.probe import probe
from tests.platform.conftest import Level


class OneRow(Level):
    def encode(self, prepared, canvas):
        return super().encode(prepared, canvas).map(lambda value: value[:1])


class Double(Level):
    def encode(self, prepared, canvas):
        return super().encode(prepared, canvas).map(torch.Tensor.double)


class ShowsNumbers(Level):
    def preview(self, prepared):
        return prepared["level"]


class FailsToShow(Level):
    def preview(self, prepared):
        raise IndexError("tuple index out of range")


class JudgesTheBatch(Level):
    def fidelity(self, images, prepared):
        return images.mean()


class FailsToPrepare(Level):
    def prepare(self, sample, generator=None):
        raise ZeroDivisionError("float division by zero")


class NanOfNothing(Level):
    def null(self, canvas):
        return super().null(canvas).map(lambda value: value / 0 * 0)


def registry(kind: type[Conditioner]) -> plugins.Registry:
    class Broken:
        @hookimpl
        def ldmkit_register_conditioners(self, register: Any) -> None:
            register("level", kind)

    return plugins.load(only=[], extra=[Broken()])


FIRST_STAGE = {
    "type": "kl", "downsample": 2, "channels": 8, "multipliers": [1, 1], "blocks": 1, "latent_channels": 2,
    "loss": {"perceptual": None, "adversarial": None}, "train": {"steps": 1, "batch": 2},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (OneRow, r"gave tokens of shape \(1, 1, 4\); expected \(8, length, 4\)"),
        (Double, r"gave tokens in float64; the canvas is float32"),
        (NanOfNothing, r"gave tokens with NaN or infinite values from null"),
        (FailsToPrepare, r"raised ZeroDivisionError in prepare: float division by zero"),
        (ShowsNumbers, r"gave Tensor of shape \(1,\) as preview; expected a PIL image, text or None"),
        (FailsToShow, r"raised IndexError in preview: tuple index out of range"),
        (JudgesTheBatch, r"gave Tensor of shape \(\) as fidelity; expected a tensor of shape \(8,\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_is_found_before_the_first_stage_is_trained(tiny, tmp_path, kind, words):
    recipe = Recipe.parse(tiny(conditioners={"depth": {"type": "level"}}) | {"autoencoder": FIRST_STAGE})
    with pytest.raises(PluginError, match=rf"(?s)slot depth \({kind.__name__}, Broken\) {words}"):
        run(recipe, tmp_path / "run", registry=registry(kind), console=False)
    assert list((tmp_path / "run" / "checkpoints").glob("*/step-*")) == []


def test_the_look_before_training_changes_nothing(tiny):
    found = registry(Level)
    recipe = Recipe.parse(tiny(conditioners={"depth": {"type": "level"}}), registry=found)
    model = build(recipe, found).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    probe(model, datasets(recipe, found)[0], 0)
    assert model.training
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
