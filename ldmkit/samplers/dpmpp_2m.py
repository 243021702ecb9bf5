"""DPM-Solver++ 2M, the sampler to take for 20 steps (Lu et al. 2022b)."""

from __future__ import annotations

import math

from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, order_at, sampler, solve
from ldmkit.samplers.grid import Grid, make_grid
from ldmkit.samplers.spacing import Spacing
from ldmkit.schedules import Schedule


@sampler
def dpmpp_2m(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    lower_order_final: bool = True,
    spacing: Spacing = "quadratic",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Lu et al. 2022b, algorithm 2: second order in lambda = log(alpha / sigma) on x_0; one evaluation a step.

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself. A last one that ends on the data is of
            first order.
        lower_order_final: the last steps are of lower order where there are fewer than 15.
        spacing, clean: see `make_grid`.
        generators: not used; the sampler is deterministic.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = make_grid(schedule, steps, spacing, clean=clean)
    before = noise  # x_0 of the step before

    def step(i: int, x: Tensor, x0: Tensor) -> Tensor:
        nonlocal before
        h = grid.lam(i + 1) - grid.lam(i)
        ahead = x0
        if order_at(i, grid, 2, lower_order_final) == 2:
            ahead = x0 + h / (2 * (grid.lam(i) - grid.lam(i - 1))) * (x0 - before)
        before = x0
        return grid.sigma[i + 1] / grid.sigma[i] * x - grid.alpha[i + 1] * math.expm1(-h) * ahead

    return solve(denoiser, noise, grid, step, callback)
