"""DPM-Solver++ 2M, the sampler to take for 20 steps (Lu et al. 2022b)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, begin, order_at, predict
from ldmkit.samplers.grid import Grid, Spacing, make_grid
from ldmkit.schedules import Schedule


@torch.no_grad()
def dpmpp_2m(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    spacing: Spacing = "quadratic",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Lu et al. 2022b, algorithm 2: second order in lambda = log(alpha / sigma) on x_0; one evaluation a step.

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself. The last is of first order where it ends on
            the data, or where there are fewer than 15.
        spacing, clean: see `make_grid`.
        generators: not used; the sampler is deterministic.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = make_grid(schedule, steps, spacing, clean=clean)
    x = begin(noise, grid)
    before = x
    for i, t in enumerate(grid.timesteps):
        x0 = predict(denoiser, x, t)
        h = grid.lam(i + 1) - grid.lam(i)
        ahead = x0
        if order_at(i, grid, 2) == 2:
            ahead = x0 + h / (2 * (grid.lam(i) - grid.lam(i - 1))) * (x0 - before)
        x = grid.sigma[i + 1] / grid.sigma[i] * x - grid.alpha[i + 1] * math.expm1(-h) * ahead
        before = x0
        if callback:
            callback(i + 1, len(grid), x, x0)
    return x
