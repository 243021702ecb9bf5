"""DPM-Solver++ SDE: 2M of the reverse stochastic equation (Lu et al. 2022b, appendix)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, begin, noise_of, order_at, predict
from ldmkit.samplers.grid import Grid, Spacing, make_grid
from ldmkit.schedules import Schedule


@torch.no_grad()
def dpmpp_sde(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    eta: float = 1.0,
    spacing: Spacing = "quadratic",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M), midpoint form: `dpmpp_2m` with fresh noise in every step; one evaluation a step.

    Diffusers' `sde-dpmsolver++`, k-diffusion's `dpmpp_2m_sde`.

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself.
        eta: strength of the noise; 0 is `dpmpp_2m`.
        spacing, clean: see `make_grid`.
        generators: one a row; needed for eta > 0.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = make_grid(schedule, steps, spacing, clean=clean)
    x = begin(noise, grid)
    before = x
    for i, t in enumerate(grid.timesteps):
        ahead = x0 = predict(denoiser, x, t)
        h = grid.lam(i + 1) - grid.lam(i)
        if order_at(i, grid, 2) == 2:
            ahead = x0 + h / (2 * (grid.lam(i) - grid.lam(i - 1))) * (x0 - before)
        if grid.sigma[i + 1] == 0:
            x = ahead
        else:
            x = grid.sigma[i + 1] / grid.sigma[i] * math.exp(-eta * h) * x
            x = x - grid.alpha[i + 1] * math.expm1(-(1 + eta) * h) * ahead
            if eta:
                spread = grid.sigma[i + 1] * math.sqrt(-math.expm1(-2 * eta * h))
                x = x + spread * noise_of(x, generators)
        before = x0
        if callback:
            callback(i + 1, len(grid), x, x0)
    return x
