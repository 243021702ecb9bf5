"""TCD: strategic stochastic sampling of a trajectory consistency model (Zheng et al. 2024)."""

from __future__ import annotations

import math

from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, Share, noise_of, sampler, solve
from ldmkit.samplers.grid import Grid, level_at
from ldmkit.samplers.lcm import distilled_grid
from ldmkit.schedules import Schedule


@sampler
def tcd(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    eta: Share = 0.3,
    original_steps: int = 50,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Zheng et al. 2024, algorithm 4: each step goes below the next timestep, to (1 - eta) of it, and noise brings it up again.

    For a network distilled to that, in 2 to 8 steps; it ends on timestep 0's level (diffusers' `TCDScheduler`).

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to `original_steps`, or a `Grid`.
        eta: the paper's gamma, in [0, 1]: 0 is deterministic (DDIM), 1 jumps to timestep 0 and noises anew, as `lcm`.
        original_steps: of the sampler that was distilled; the timesteps are among its own.
        generators: one a row; needed for eta > 0.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = distilled_grid(schedule, steps, original_steps)

    def step(i: int, x: Tensor, x0: Tensor) -> Tensor:
        eps = (x - grid.alpha[i] * x0) / grid.sigma[i]
        after = grid.timesteps[i + 1] if i + 1 < len(grid) else 0.0
        lower = (1 - eta) * after
        alpha, sigma, _ = level_at(schedule, math.floor(lower) if schedule.discrete else lower)
        x = alpha * x0 + sigma * eps
        if eta and i + 1 < len(grid):
            kept = grid.alpha[i + 1] / alpha
            added = math.sqrt(max(grid.sigma[i + 1] ** 2 - (kept * sigma) ** 2, 0.0))
            x = kept * x + added * noise_of(x, generators)
        return x

    return solve(denoiser, noise, grid, step, callback)
