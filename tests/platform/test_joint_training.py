"""Conditioners are trained with the denoiser: optimizer, average, learning rates, weight decay and freezing of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ldmkit
from ldmkit import plugins
from ldmkit.build import build, fit
from ldmkit.recipe import Recipe
from ldmkit.run import run
from ldmkit.training.checkpoint import Checkpoints

SLOTS: dict[str, dict[str, Any]] = {
    "plain": {"type": "class", "width": 8, "port": "vector"},
    "fast": {"type": "class", "width": 8, "port": "vector", "lr": 1e-2},
    "decayed": {"type": "class", "width": 8, "port": "vector", "lr": 1e-2, "weight_decay": 0.5},
    "frozen": {"type": "class", "width": 8, "port": "vector", "freeze": True},
    "late": {"type": "class", "width": 8, "port": "vector", "freeze": 2},
}
LR, DECAY = 1e-3, 0.01  # of the stage


class Trained:
    """Two steps: the weights before, after each, and their averages."""

    def __init__(self, folder: Path, value: dict[str, Any]) -> None:
        registry = plugins.load(only=["class"])
        recipe = fit(Recipe.parse(value, registry=registry), registry)
        self.start = _named(build(recipe, registry).conditioners.state_dict())
        self.path = run(recipe, folder, registry=registry, console=False).path
        steps = [self._checkpoint(step) for step in (1, 2)]
        self.weights = [found["model"] for found in steps]
        self.averages = [found["ema"] for found in steps]

    def _checkpoint(self, step: int) -> dict[str, dict[str, Tensor]]:
        folder = self.path / "checkpoints" / "diffusion"
        found = next(c for c in [Checkpoints(folder).newest()] if c is not None)
        assert found.step == 2
        path = folder / f"step-{step:08d}"
        from safetensors.torch import load_file

        read = {name: load_file(path / f"{name}.safetensors") for name in ("model", "ema")}
        return {name: _of_conditioners(tensors) for name, tensors in read.items()}


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items() if name.endswith("embedding.weight")}


def _of_conditioners(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return _named(
        {name.removeprefix("conditioners."): v for name, v in tensors.items() if name.startswith("conditioners.")}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., dict[str, Any]]) -> Trained:
    settings = {"steps": 2, "lr": LR, "weight_decay": DECAY, "clip": None, "ema": 0.9, "batch": 16}
    return Trained(tmp_path_factory.mktemp("joint") / "run", tiny(conditioners=SLOTS, train=settings))


def table(slot: str) -> str:
    return f"{slot}.embedding.weight"


def test_a_trainable_conditioner_moves_and_its_average_follows_in_closed_form(trained):
    name = table("plain")
    first, second = (weights[name] for weights in trained.weights)
    assert not torch.equal(trained.start[name], second)
    average = trained.start[name]
    for n, weights in enumerate((first, second), start=1):
        decay = min(0.9, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weights
        torch.testing.assert_close(trained.averages[n - 1][name], average, rtol=0, atol=5e-7)
    assert float((average - second).abs().max()) > 1e-6


def test_a_frozen_conditioner_stays_and_is_neither_averaged_nor_checkpointed_again(trained):
    name = table("frozen")
    for weights in ("ema", "raw"):
        model = ldmkit.load(trained.path, weights)
        assert torch.equal(model.conditioners.state_dict()[name], trained.start[name])
    assert all(name not in tensors for tensors in (*trained.weights, *trained.averages))


def test_one_that_is_frozen_until_a_step_stands_still_until_then(trained):
    name = table("late")
    assert all(torch.equal(weights[name], trained.start[name]) for weights in trained.weights)
    assert all(torch.equal(average[name], trained.start[name]) for average in trained.averages)


def test_learning_rate_and_weight_decay_are_each_slots_own(trained):
    # The denoiser's last layer starts at zero, so that the first step's gradient of a conditioner is 0: what is left is
    # p <- p (1 - lr * weight_decay) (Loshchilov & Hutter 2017).
    for slot, shrink in (("plain", LR * DECAY), ("fast", 1e-2 * DECAY), ("decayed", 1e-2 * 0.5)):
        before, after = trained.start[table(slot)], trained.weights[0][table(slot)]
        torch.testing.assert_close(after, before * (1 - shrink), rtol=1e-6, atol=1e-8)
