"""Ancestral sampling (Ho et al. 2020)."""

from __future__ import annotations

import math

from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, NotNegative, Share, noise_of, sampler, solve
from ldmkit.samplers.grid import Grid, make_grid
from ldmkit.samplers.spacing import Spacing
from ldmkit.schedules import Schedule


@sampler
def ddpm(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    variance: Share = 0.0,
    temperature: NotNegative = 1.0,
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

    def step(i: int, x: Tensor, x0: Tensor) -> Tensor:
        kept = grid.alpha[i] / grid.alpha[i + 1]
        beta = max(grid.sigma[i] ** 2 - (kept * grid.sigma[i + 1]) ** 2, 0.0)
        share = grid.sigma[i + 1] ** 2 / grid.sigma[i] ** 2
        # eq. 7, for x_s = x_(t-1) with alpha_t / alpha_s for sqrt(1 - beta_t)
        x = grid.alpha[i + 1] * beta / grid.sigma[i] ** 2 * x0 + kept * share * x
        if grid.sigma[i + 1] > 0 and beta > 0:
            spread = math.sqrt((1 - variance) * share * beta + variance * beta)
            x = x + temperature * spread * noise_of(x, generators)
        return x

    return solve(denoiser, noise, grid, step, callback)
