"""A recipe of a second or two: small scenes, pixels for latents, a UNet of a few thousand parameters; a sound conditioner."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from ldmkit.conditioning import Conditioner, Conditioning, Ports

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"type": "scenes", "size": 16, "count": 16, "held_out": 4},
    "autoencoder": {"type": "identity"},
    "denoiser": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [2], "heads": 1},
    "train": {"steps": 2, "batch": 4, "ema": 0.9, "log_every": 1, "checkpoint_every": 1, "validate_every": 100},
    "sample": {"steps": 2, "count": 2},
    "runtime": {"device": "cpu", "cache": "off"},
}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., dict[str, Any]]:
    """`tiny(conditioners={...}, train__steps=3)`: a recipe as a mapping."""

    def make(**changes: Any) -> dict[str, Any]:
        value = copy.deepcopy(TINY)
        for key, change in changes.items():
            *sections, last = key.split("__")
            inner: Any = value
            for section in sections:
                inner = inner[section]
            inner[last] = {**inner[last], **change} if isinstance(inner.get(last), Mapping) else change
        return value

    return make


class Level(Conditioner):
    """How many shapes there are, by tokens and vector: sound, and made to be spoiled."""

    reads = ("shapes",)

    def __init__(self, *, width: int = 4) -> None:
        super().__init__()
        self.emits = Ports(tokens=width, vector=width, length=1)
        self.net = nn.Linear(1, width)

    def prepare(self, sample, generator=None):
        return {"level": torch.tensor([float(sample["shapes"])])}

    def encode(self, prepared, canvas):
        vector = self.net(prepared["level"])
        return Conditioning(tokens=vector[:, None], vector=vector)

    def null(self, canvas):
        return Conditioning(tokens=canvas.zeros(1, 1, self.emits.tokens), vector=canvas.zeros(1, self.emits.vector))
