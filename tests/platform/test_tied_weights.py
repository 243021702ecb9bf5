"""Weights that a conditioner ties are one tensor, trained and averaged once, also after they are saved and loaded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ldmkit
from ldmkit import Conditioner, Conditioning, Ports, hookimpl, plugins


class Tied(Conditioner):
    reads = ("image",)

    def __init__(self, *, width: int = 8) -> None:
        super().__init__()
        self.emits = Ports(vector=width)
        self.a, self.b, self.net = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(3, width)
        self.b.weight = self.a.weight
        self.c = self.a  # a module under two names

    def prepare(self, sample, generator=None):
        return {"colour": torch.as_tensor(sample["image"]).mean((1, 2))}

    def encode(self, prepared, canvas):
        return Conditioning(vector=self.b(self.a(self.net(prepared["colour"].to(canvas.dtype)))))

    def null(self, canvas):
        return Conditioning(vector=canvas.zeros(1, self.emits.vector))


class Plugin:
    @hookimpl
    def ldmkit_register_conditioners(self, register):
        register("tied", Tied)


@pytest.fixture(scope="module")
def registry() -> plugins.Registry:
    return plugins.load(extra=[Plugin()])


@pytest.fixture
def model(registry) -> ldmkit.LatentDiffusion:
    recipe = {
        "data": {"type": "scenes", "size": 16},
        "autoencoder": {"type": "identity"},
        "conditioners": {"tied": {}},
        "denoiser": {"channels": 8, "multipliers": [1], "blocks": 1, "attention": [], "variant": {"groups": 4}},
        "train": {"steps": 2, "batch": 4},
    }
    return ldmkit.build(ldmkit.load_recipe(recipe), registry)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_they_stay_tied(model, registry, tmp_path, weights):
    raw = {name: parameter.detach() + 1 for name, parameter in model.named_parameters()}
    model.save(tmp_path / "model", raw=raw)
    loaded = ldmkit.load(tmp_path / "model", weights, registry=registry)
    tied, before = loaded.conditioners["tied"], model.conditioners["tied"]
    assert tied.b.weight is tied.a.weight is tied.c.weight
    assert tied.c is tied.a
    assert sum(p.numel() for p in tied.parameters()) == sum(p.numel() for p in before.parameters())
    assert torch.equal(tied.b.weight, before.a.weight + (weights == "raw"))
    with torch.no_grad():
        tied.a.weight.zero_()
    assert not tied.b.weight.any()
