"""Conditioners are trained with the denoiser: optimizer, average, learning rates, weight decay and freezing of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import ldmkit
from ldmkit import plugins
from ldmkit.assembly import build, fit
from ldmkit.recipe import Recipe
from ldmkit.runs.run import run

SLOTS: dict[str, dict[str, Any]] = {
    "plain": {"type": "class", "width": 8, "port": "vector"},
    "fast": {"type": "class", "width": 8, "port": "vector", "lr": 1e-2},
    "decayed": {"type": "class", "width": 8, "port": "vector", "lr": 1e-2, "weight_decay": 0.5},
    "frozen": {"type": "class", "width": 8, "port": "vector", "freeze": True},
    "late": {"type": "class", "width": 8, "port": "vector", "freeze": 3},
}
LR, DECAY = 1e-3, 0.01  # of the stage


class Trained:
    """Three steps: the weights at the start and after the last two, and their averages.

    The denoiser's residual blocks and its last layer end in zeros, so that no gradient reaches a conditioner before the third
    step; until then weight decay alone moves it.
    """

    def __init__(self, folder: Path, value: dict[str, Any]) -> None:
        registry = plugins.load(only=["class"])
        recipe = fit(Recipe.parse(value, registry=registry), registry)
        self.start = _tables(build(recipe, registry).conditioners.state_dict())
        self.path = run(recipe, folder, registry=registry, console=False).path
        self.weights = {step: self._saved(step, "model") for step in (2, 3)}
        self.averages = {step: self._saved(step, "ema") for step in (2, 3)}

    def _saved(self, step: int, name: str) -> dict[str, Tensor]:
        tensors = load_file(self.path / "checkpoints" / "diffusion" / f"step-{step:08d}" / f"{name}.safetensors")
        return _tables({key.removeprefix("conditioners."): value for key, value in tensors.items()})


def _tables(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """slot -> its table of classes (rows, width)."""
    end = ".embedding.weight"
    return {name.removesuffix(end): value.clone() for name, value in tensors.items() if name.endswith(end)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., dict[str, Any]]) -> Trained:
    settings = {"steps": 3, "lr": LR, "weight_decay": DECAY, "clip": None, "ema": 0.9, "batch": 16}
    return Trained(tmp_path_factory.mktemp("joint") / "run", tiny(conditioners=SLOTS, train=settings))


def test_a_trainable_conditioner_moves_and_its_average_follows_in_closed_form(trained):
    start, second, third = (tables["plain"] for tables in (trained.start, *trained.weights.values()))
    assert not torch.equal(second, third)
    average = start
    for n, weights in enumerate((start * (1 - LR * DECAY), second, third), start=1):
        decay = min(0.9, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weights
        if n in trained.averages:
            torch.testing.assert_close(trained.averages[n]["plain"], average, rtol=0, atol=5e-7)
    assert float((trained.averages[3]["plain"] - third).abs().max()) > 1e-4


def test_a_frozen_conditioner_stays_and_is_neither_averaged_nor_checkpointed_again(trained):
    for weights in ("ema", "raw"):
        model = ldmkit.load(trained.path, weights)
        assert torch.equal(model.conditioners["frozen"].embedding.weight, trained.start["frozen"])
    assert all("frozen" not in tables for tables in (*trained.weights.values(), *trained.averages.values()))


def test_what_is_frozen_is_saved_once(trained):
    """A run that goes on must not depend on where these weights came from."""
    (folder,) = (trained.path / "checkpoints" / "frozen").glob("step-*")
    assert torch.equal(_tables(load_file(folder / "conditioners.safetensors"))["frozen"], trained.start["frozen"])


def test_one_that_is_frozen_until_a_step_stands_still_until_then(trained):
    for tables in (*trained.weights.values(), *trained.averages.values()):
        assert torch.equal(tables["late"], trained.start["late"])


def test_weight_decay_is_each_slots_own(trained):
    # Without a gradient p <- p (1 - lr * weight_decay) is left of a step (Loshchilov & Hutter 2017).
    for slot, shrink in (("plain", LR * DECAY), ("fast", 1e-2 * DECAY), ("decayed", 1e-2 * 0.5)):
        expected = trained.start[slot] * (1 - shrink) ** 2
        torch.testing.assert_close(trained.weights[2][slot], expected, rtol=1e-6, atol=1e-8)


def test_the_learning_rate_is_each_slots_own(trained):
    # Adam's first step with a gradient, the third: m = 0.1 g / (1 - 0.9^3), v = 0.001 g^2 / (1 - 0.999^3), whatever g is.
    step = (0.1 / (1 - 0.9**3)) / (0.001 / (1 - 0.999**3)) ** 0.5
    for slot, rate, decay in (("plain", LR, DECAY), ("fast", 1e-2, DECAY), ("decayed", 1e-2, 0.5)):
        moved = trained.weights[3][slot] - trained.weights[2][slot] * (1 - rate * decay)
        classes = moved[:-1].abs()  # the last row is the null, which few pictures see
        assert float(classes.median()) == pytest.approx(rate * step, rel=0.05), slot
