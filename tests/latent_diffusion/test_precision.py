"""Models in other precisions against the same model in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ldmkit import diffusion as objectives
from ldmkit.autoencoder import KLAutoencoder
from ldmkit.conditioning import Conditioner, ConditionerSet, Conditioning, Dropout, Ports
from ldmkit.denoiser.unet import UNet
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.samplers import ddim, dpmpp_2m


class Label(Conditioner):
    reads = ("label",)

    def __init__(self) -> None:
        super().__init__()
        self.emits = Ports(tokens=8, concat=1, length=1)
        self.table = nn.Embedding(5, 8)

    def prepare(self, sample, generator=None):
        return {"id": torch.tensor(int(sample["label"])), "level": torch.tensor(0.1 * int(sample["label"]))}

    def encode(self, prepared, canvas):
        level = prepared["level"].to(canvas.dtype)[:, None, None, None].expand(-1, 1, *canvas.grid)
        return Conditioning(tokens=self.table(prepared["id"])[:, None], concat=level)

    def null(self, canvas):
        return Conditioning(tokens=self.table.weight[-1:, None], concat=canvas.zeros(1, 1, *canvas.grid))


@pytest.fixture(scope="module")
def exact() -> LatentDiffusion:
    """Small weights that fill the network, v-prediction (no division by alpha), in float64."""
    torch.manual_seed(0)
    autoencoder = KLAutoencoder(downsample=2, channels=8, multipliers=(1, 2), blocks=1, latent_channels=2, groups=4)
    denoiser = UNet.of_widths(
        in_channels=3, out_channels=2, channels=16, multipliers=(1, 2), blocks=1, attention=(2,), context_width=8
    )
    for parameter in denoiser.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
    conditioners = ConditionerSet(
        {"label": Label()}, vector_width=denoiser.vector_width, dropout=Dropout.from_table(("label",), {"label": 0.1})
    )
    return (
        LatentDiffusion(
            autoencoder,
            denoiser,
            conditioners,
            objectives.make(prediction="v"),
            size=(16, 16),
            samplers={"ddim": ddim, "dpmpp-2m": dpmpp_2m},
        )
        .eval()
        .double()
    )


SETTINGS = {"steps": 4, "guidance": 2.0, "output": "tensor"}
# Rounding of the dtype's own epsilon, grown by some fifty layers, four steps and the guidance.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.3}


def test_float64_is_computed_in_float64_all_the_way(exact):
    latents = exact.sample({"label": 2}, **{**SETTINGS, "output": "latent"})
    images = exact.sample({"label": 2}, **SETTINGS)
    assert latents.dtype == images.dtype == torch.float64
    assert not torch.equal(latents, latents.float().double())  # it went through no float32


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m"])
@pytest.mark.parametrize("start", [False, True])
def test_a_model_in_another_precision_samples_the_same(exact, dtype, sampler, start):
    model = copy.deepcopy(exact).to(dtype)
    settings = {**SETTINGS, "sampler": sampler}
    if start:
        image = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
        mask = torch.zeros(16, 16)
        mask[:8] = 1
        settings |= {"image": image, "strength": 0.7, "mask": mask}
    images = model.sample({"label": 2}, **settings)
    assert images.dtype == dtype
    expected = exact.sample({"label": 2}, **settings)
    assert float((images.double() - expected).abs().mean()) < TOLERANCE[dtype]
    other = exact.sample({"label": 1}, **settings)
    assert float((other - expected).abs().max()) > 0  # the condition is heard at all


@pytest.mark.parametrize("part", ["autoencoder", "denoiser", "conditioners"])
def test_parts_may_differ(exact, part):
    model = copy.deepcopy(exact).float()
    getattr(model, part).to(torch.bfloat16)
    image = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    for extra in ({}, {"image": image, "strength": 0.7}):
        images = model.sample({"label": 2}, **SETTINGS, **extra)
        expected = exact.sample({"label": 2}, **SETTINGS, **extra)
        assert float((images.double() - expected).abs().mean()) < TOLERANCE[torch.bfloat16]
    assert model.canvas().dtype == (torch.bfloat16 if part == "conditioners" else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_loss_follows_the_model(exact, dtype):
    torch.manual_seed(0)
    model = copy.deepcopy(exact).to(dtype)
    batch = model.batch([{"image": torch.linspace(-1, 1, 768).reshape(3, 16, 16), "label": 1}] * 2)
    draws = model.draw([0, 1], seed=0)
    loss, _ = model(batch, draws)
    loss.backward()
    gradient = model.denoiser.out[-1].weight.grad
    assert gradient is not None
    assert gradient.dtype == dtype
    reference, _ = exact(batch, draws)
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=1e-6 if dtype == torch.float64 else 0.1)
    exact.zero_grad()


def test_the_autoencoder_takes_images_and_latents_of_any_precision(exact):
    autoencoder = copy.deepcopy(exact).half().autoencoder
    image = torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)
    latent = autoencoder.encode(image)
    assert latent.dtype == torch.float16
    assert autoencoder.decode(latent.double()).dtype == torch.float16
    assert autoencoder.latent_scale.dtype == torch.float32  # rounded to half, every latent would be another
