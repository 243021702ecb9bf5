"""Small models in which no branch is zero: with conditions of any kind, with one through every port, in the original's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldmkit import plugins
from ldmkit.assembly import assemble
from ldmkit.conditioning import Canvas, Conditioner, Conditioning, Ports
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.plugins import Registry

SMALL = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [2], "head_width": 8}
# The original's layout knows 32 groups alone.
WIDE = {
    "channels": 32,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [2],
    "heads": 2,
    "variant": {"groups": 32},
}
KL = {
    "type": "kl",
    "downsample": 4,
    "multipliers": [1, 1, 1],
    "channels": 32,
    "blocks": 1,
    "latent_channels": 3,
}
VQ = {**KL, "type": "vq", "codebook": 16, "middle_attention": True}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return plugins.load()


class Hint(Conditioner):
    """A number through every port that is asked for; its output is never zero. `seen` is learned from the data."""

    reads = ("hint",)

    def __init__(self, *, tokens: int = 0, vector: int = 0, concat: int = 0, seen: int = 0) -> None:
        super().__init__()
        self.emits = Ports(tokens=tokens, vector=vector, concat=concat, length=2 if tokens else 0)
        self.net = nn.Linear(1, 2 * tokens + vector + concat)

    @classmethod
    def fit(cls, options, samples):
        return {"seen": len(list(samples))}

    def prepare(self, sample, generator=None):
        return {"hint": torch.tensor([float(sample["hint"])])}

    def encode(self, prepared, canvas: Canvas):
        made = self.net(prepared["hint"]) + 1.0
        tokens, vector, concat = made.split([2 * self.emits.tokens, self.emits.vector, self.emits.concat], dim=1)
        return Conditioning(
            tokens=tokens.unflatten(1, (2, -1)) if self.emits.tokens else None,
            vector=vector if self.emits.vector else None,
            concat=concat[..., None, None].expand(-1, -1, *canvas.grid) if self.emits.concat else None,
        )

    def null(self, canvas: Canvas):
        return self.encode({"hint": canvas.zeros(1, 1)}, canvas)


def assembled(registry: Registry, conditioners: Mapping[str, Any], *, std: float, **config: Any) -> LatentDiffusion:
    """A model with weights drawn from N(0, std^2); `conditioners` are slots of a type, and of options if there are any."""
    slots = {name: {"options": {}, "fields": {}, "origin": {}, **slot} for name, slot in conditioners.items()}
    model = assemble({"dropout": {}, "sampling": {}, **config, "conditioners": slots}, registry)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "absent" not in name:  # the original has none beside its map
                parameter.normal_(std=std)
    return model.eval()


def representable(
    registry: Registry, conditioners: Mapping[str, Any], autoencoder: Any = KL, **network: Any
) -> LatentDiffusion:
    """A model that the original's layout can hold, as long as `network` leaves it so."""
    torch.manual_seed(0)
    return assembled(
        registry,
        conditioners,
        std=0.1,
        size=[32, 32],
        autoencoder={**autoencoder, "groups": 32},
        denoiser={**WIDE, **network},
        diffusion={"schedule": {"type": "linear", "start": 0.0015, "end": 0.0205}, "loss": "l1"},
        dropout={slot: 0.1 for slot in conditioners if slot == "class"},
        sampling={"sampler": "ddim", "spacing": "compvis", "steps": 2},
    )


def first_step(model: LatentDiffusion, hints: Mapping[str, float]) -> Tensor:
    """What the model predicts for fixed noise, with its slots' hints."""
    x, t = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5)), torch.tensor([0, 500, 999])
    given = [{slot: hints[slot] for slot in model.conditioners} for _ in range(3)]
    with torch.no_grad():
        return model.predict_noise(x, t, model.condition(given))
