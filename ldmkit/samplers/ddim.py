"""DDIM (Song et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, begin, noise_of, predict
from ldmkit.samplers.grid import Grid, Spacing, make_grid
from ldmkit.schedules import Schedule


@torch.no_grad()
def ddim(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    eta: float = 0.0,
    temperature: float = 1.0,
    spacing: Spacing = "trailing",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Song et al. 2020, eq. 12: x_s = alpha_s x_0 + sqrt(sigma_s^2 - d^2) eps + d z, first order.

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself.
        eta: share of the posterior's standard deviation that is drawn anew each step: 0 is deterministic, 1 is DDPM.
        temperature: factor on the noise drawn.
        spacing, clean: see `make_grid`. `spacing="compvis"` is the released code's sampler, step for step.
        generators: one a row; needed for eta > 0.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = make_grid(schedule, steps, spacing, clean=clean)
    x = begin(noise, grid)
    for i, t in enumerate(grid.timesteps):
        x0 = predict(denoiser, x, t)
        eps = (x - grid.alpha[i] * x0) / grid.sigma[i]
        # eta sigma_s sqrt(1 - SNR_t / SNR_s), the posterior's standard deviation on any schedule
        spread = eta * grid.sigma[i + 1] * math.sqrt(-math.expm1(grid.log_snr[i] - grid.log_snr[i + 1]))
        x = grid.alpha[i + 1] * x0 + math.sqrt(max(grid.sigma[i + 1] ** 2 - spread**2, 0.0)) * eps
        if spread:
            x = x + temperature * spread * noise_of(x, generators)
        if callback:
            callback(i + 1, len(grid), x, x0)
    return x
