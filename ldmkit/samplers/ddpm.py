"""Ancestral sampling (Ho et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, begin, noise_of, predict
from ldmkit.samplers.grid import Grid, Spacing, make_grid
from ldmkit.schedules import Schedule


@torch.no_grad()
def ddpm(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    variance: float = 0.0,
    temperature: float = 1.0,
    spacing: Spacing = "trailing",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Ho et al. 2020, algorithm 2, on any sub-sequence of timesteps; with steps = T it is the original.

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself.
        variance: 0 takes the posterior's variance, 1 the forward process's beta, between mixes both (`v_posterior`).
        temperature: factor on the noise drawn.
        spacing, clean: see `make_grid`. No noise is added in a step that ends on the data.
        generators: one a row.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = make_grid(schedule, steps, spacing, clean=clean)
    x = begin(noise, grid)
    for i, t in enumerate(grid.timesteps):
        x0 = predict(denoiser, x, t)
        kept = grid.alpha[i] / grid.alpha[i + 1]
        beta = max(grid.sigma[i] ** 2 - (kept * grid.sigma[i + 1]) ** 2, 0.0)
        share = grid.sigma[i + 1] ** 2 / grid.sigma[i] ** 2
        # eq. 7, for x_s = x_(t-1) with alpha_t / alpha_s for sqrt(1 - beta_t)
        x = grid.alpha[i + 1] * beta / grid.sigma[i] ** 2 * x0 + kept * share * x
        if grid.sigma[i + 1] > 0 and beta > 0:
            spread = math.sqrt((1 - variance) * share * beta + variance * beta)
            x = x + temperature * spread * noise_of(x, generators)
        if callback:
            callback(i + 1, len(grid), x, x0)
    return x
