"""The perceptual term of stage two: the distance of what the prediction and the clean latents decode to."""

import pytest
import torch

from ldmkit.autoencoder.perceptual import Perceptual
from ldmkit.data import batches
from ldmkit.losses import ExtraLosses
from ldmkit.losses.extra import Part
from ldmkit.losses.perceptual import PerceptualTerm


@pytest.fixture
def model(toy):
    return toy.model().eval()


@pytest.fixture
def step(toy, model):
    """(batch, draws) of the first step."""
    (batch,) = batches(toy.data(), model.conditioners, start=0, batch=3, seed=7, steps=1)
    return batch, model.draw(batch.positions, 7)


def losses(model, step, term):
    extra = ExtraLosses({"look": Part(term)})
    plain, _ = model.losses(*step)
    total, _ = model.losses(*step, extra)
    return total - plain


def test_it_is_the_distance_of_the_decoded_images(model, step):
    batch, draws = step
    latents = model.latents(batch, draws.posterior)
    noisy = model.diffusion.noised(latents, draws.noise, draws.timesteps)
    conditioning = model.conditioners(batch.prepared, batch.present, model.canvas(), len(batch), dropped=draws.dropped)
    x0 = model.diffusion.to_x0(model.predict(noisy, draws.timesteps, conditioning), noisy, draws.timesteps)
    expected = Perceptual("efficientnet-lite0")(model.autoencoder.decode(x0), model.autoencoder.decode(latents))
    torch.testing.assert_close(losses(model, step, PerceptualTerm()), expected, rtol=1e-4, atol=1e-6)
    assert float(expected.detach().min()) > 0


def test_a_right_prediction_costs_nothing(model, step):
    """A denoiser that knows the clean latents."""
    batch, draws = step
    latents = model.latents(batch, draws.posterior)
    model.predict = lambda noisy, t, conditioning: model.diffusion.from_x0(latents, noisy, t)
    assert float(losses(model, step, PerceptualTerm()).abs().max()) < 1e-3


def test_its_gradient_moves_the_denoiser_and_not_the_autoencoder(model, step):
    model.autoencoder.requires_grad_(False)
    losses(model, step, PerceptualTerm()).sum().backward()
    assert any(float(p.grad.abs().max()) > 0 for p in model.denoiser.parameters() if p.grad is not None)
    assert all(p.grad is None for p in model.autoencoder.parameters())
    assert list(PerceptualTerm().parameters()) == []
