"""Stage two is trained on scaled latents: the rule that makes one schedule fit every autoencoder (the paper, appendix G)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ldmkit.autoencoder import Posterior
from ldmkit.data import batches
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.training.caching import latents


@pytest.mark.parametrize("kept", [False, True], ids=["encoded", "kept"])
def test_what_the_denoiser_sees_in_training_is_made_of_scaled_latents(
    toy: SimpleNamespace, tmp_path: Path, kept: bool
) -> None:
    model: LatentDiffusion = toy.in_double(toy.model())
    data = toy.double_data()
    latents.calibrate(model.autoencoder, data, scale="std", seed=5)
    scale = float(model.autoencoder.latent_scale[0])
    assert abs(scale - 1) > 0.05, "or the test would see no difference"
    batch = next(iter(batches(data, model.conditioners, start=0, batch=24, seed=5, steps=1)))
    if kept:
        own = latents.build(model.autoencoder, data, folder=tmp_path, key="k", seed=5)
        batch = own.attach(batch)
    draws = model.draw(batch.positions, 5)
    seen: list[Tensor] = []
    model.denoiser.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    model.eval()(batch, draws)
    with torch.no_grad():
        found: Any = model.autoencoder.posterior(batch.images)
        unscaled = Posterior(found.mean, found.logvar).sample(draws.posterior.double())
    kept_signal = model.diffusion.schedule.alphas_cumprod[draws.timesteps.long()][:, None, None, None]
    alpha, sigma = kept_signal.sqrt(), (1 - kept_signal).sqrt()
    x0 = (seen[0] - sigma * draws.noise) / alpha
    clear = (alpha > 0.1).flatten()  # where the latent is not lost in the noise
    assert int(clear.sum()) > 8
    expected = model.autoencoder.scale(unscaled)
    # What is kept is rounded to float32, as is the scale: 6e-8 of numbers below 10, each.
    assert torch.allclose(x0[clear], expected[clear], atol=1e-5)
    assert expected.std(correction=0) == pytest.approx(1.0, abs=0.05)
    assert unscaled.std(correction=0) == pytest.approx(1 / scale, rel=0.05)
