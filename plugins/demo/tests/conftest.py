"""Models with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ldmkit
from ldmkit import plugins
from ldmkit.recipe import Recipe

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {"type": "scenes", "size": 16, "count": 64, "shapes": [1, 1]},
    "autoencoder": {
        "type": "kl",
        "downsample": 4,
        "channels": 8,
        "multipliers": [1, 1, 2],
        "blocks": 1,
        "latent_channels": 2,
        "scale": 1.0,
        "loss": {"perceptual": None, "adversarial": None},
        "train": {"steps": 1, "batch": 4},
    },
    "conditioners": {
        "text": {"width": 16, "depth": 1, "heads": 1, "length": 16},
        "semantic_map": {"channels": 2},
        "class": {"port": "vector", "width": 8, "classes": ["sand", "slate", "wood", "snow"]},
    },
    "dropout": dict.fromkeys(
        ("text", "semantic_map", "class", "text+class", "text+semantic_map", "semantic_map+class"), 0.1
    )
    | {"text+semantic_map+class": 0.1},
    "denoiser": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [2]},
    "train": {"steps": 1, "batch": 4},
    "sample": {"steps": 3, "guidance": {"class": 1.0, "semantic_map": 1.5, "text": 3.0}},
}


def made(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A saved model of the recipe, never trained."""
    registry = plugins.load()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        described = {key: value for key, value in {**RECIPE, **changes}.items() if value is not None}
        recipe = ldmkit.fit(Recipe.parse(described, registry=registry), registry)
        model = ldmkit.build(recipe, registry)
        with torch.no_grad():
            # The last layers start at zero, and would make one image of all.
            for parameter in model.denoiser.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.save(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same slots, with other weights."""
    return made(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enlarges four times."""
    return made(
        tmp_path_factory.mktemp("models") / "small",
        conditioners={"low_res": {"scale": 4, "dropout": 0.1}},
        dropout=None,
        sample={"steps": 3},
    )
