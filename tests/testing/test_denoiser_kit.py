"""`check_denoiser` passes the UNet and a sound stranger, and names each planted fault."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldmkit.conditioning import LatentSpec, Ports
from ldmkit.denoiser import Denoiser
from ldmkit.denoiser.unet import UNet
from ldmkit.plugins.ranges import Positive
from ldmkit.testing import ContractError, check_denoiser


class Mixer(Denoiser):
    """A few 1x1 convolutions: sound, and made to be spoiled."""

    reduction = 2

    def __init__(self, *, latent: LatentSpec, ports: Ports, width: Positive = 8, depth: Positive = 2) -> None:
        super().__init__()
        self.vector_width = width
        self.stem = nn.Conv2d(latent.channels + ports.concat, width, 1)
        self.time = nn.Linear(1, width)
        self.read = nn.Linear(ports.tokens, width) if ports.tokens else None
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.head = nn.Conv2d(width, latent.channels, 1)

    def forward(self, x, t, *, tokens=None, mask=None, vector=None, concat=None):
        h = self.stem(x if concat is None else torch.cat([x, concat], 1))
        embedding = self.time(t[:, None].to(x.dtype) / 1000)
        if vector is not None:
            embedding = embedding + vector
        if self.read is not None:
            embedding = embedding + self.pool(self.read(tokens), mask)
        h = h + embedding[:, :, None, None]
        for layer in self.layers:
            h = h + torch.tanh(layer(h))
        return self.head(h)

    def pool(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        seen = torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        return (tokens * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)

    def blocks(self):
        return list(self.layers)


def test_the_unet_keeps_the_contract():
    check_denoiser(UNet, {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [2], "heads": 1})


def test_so_does_a_stranger():
    check_denoiser(Mixer, {"depth": 3})


class NoVector(Mixer):
    def forward(self, x, t, *, vector=None, **given):
        return super().forward(x, t, **given)


class Unmasked(Mixer):
    def pool(self, tokens, mask):
        return super().pool(tokens, None)


class Normed(Mixer):
    def forward(self, x, t, **given):
        return super().forward(x, t, **given) + x.mean(0, keepdim=True)


class Noisy(Mixer):
    def forward(self, x, t, **given):
        return super().forward(x, t, **given) + torch.rand(1).double()


class Wide(Mixer):
    def forward(self, x, t, **given):
        return super().forward(x, t, **given)[:, :, :-1]


class Idle(Mixer):
    def __init__(self, *, latent: LatentSpec, ports: Ports, width: Positive = 8) -> None:
        super().__init__(latent=latent, ports=ports, width=width)
        self.unused = nn.Linear(2, 2)


class Backwards(Mixer):
    def blocks(self):
        return list(reversed(self.layers))


class Single(Mixer):
    def forward(self, x, t, **given):
        return super().forward(x, t, **given).float()


class Shrinking(Mixer):
    reduction = 0


class Positional(Mixer):
    def __init__(self, latent: LatentSpec, ports: Ports) -> None:
        super().__init__(latent=latent, ports=ports)


class Recomputed(Mixer):
    def forward(self, x, t, **given):
        return super().forward(x, t, **given) * (2.0 if self.checkpointing else 1.0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NoVector, "vector changes nothing"),
        (Unmasked, "a masked token changes the prediction"),
        (Normed, "row 0 depends on its batch"),
        (Noisy, "two calls in eval mode differ"),
        (Wide, r"forward gave \(2, 4, 7, 8\) for x \(2, 4, 8, 8\)"),
        (Idle, "no gradient reaches unused.weight and 1 more"),
        (Backwards, r"blocks\(\) run in the order \[1, 0\]"),
        (Single, "float64 latents gave torch.float32"),
        (Shrinking, "reduction is 0"),
        (Positional, "the parameter `latent` is not keyword-only"),
        (Recomputed, "`checkpointing` changes the gradient"),
        (nn.Linear, "is no subclass of ldmkit.Denoiser"),
    ],
)
def test_planted_faults_are_named(kind: Any, message: str):
    with pytest.raises(ContractError, match=message):
        check_denoiser(kind)


def test_options_are_checked_before_anything_is_made():
    with pytest.raises(ContractError, match="its options"):
        check_denoiser(Mixer, {"width": 0})


def test_a_layer_that_is_not_there_is_named_with_the_nearest():
    from ldmkit.errors import UsageError

    network = Mixer(latent=LatentSpec(4, 8, (64, 64)), ports=Ports())
    assert network.layer("layers.1") is network.layers[1]
    with pytest.raises(UsageError, match=r"Mixer has no layer 'layer.1'; did you mean 'layers.1'\?") as caught:
        network.layer("layer.1")
    assert caught.value.hint == "its repeated blocks are layers.0, layers.1"
