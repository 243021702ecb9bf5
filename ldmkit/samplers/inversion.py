"""Encode by inverted DDIM: from data to the noise that DDIM would make it from (Song et al. 2020, section 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.errors import UsageError
from ldmkit.samplers.contract import Callback, predict
from ldmkit.samplers.grid import Grid, Spacing, make_grid
from ldmkit.schedules import Schedule


@torch.no_grad()
def invert(
    denoiser: X0Predictor,
    latents: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    iterations: int = 1,
    spacing: Spacing = "trailing",
    clean: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    """The noise (b, c, h, w) from which `ddim` with the same steps, spacing and `clean` makes `latents` again.

    Args:
        denoiser: (x_t, t) -> x_0. Without guidance: with it, the way there and back part.
        latents: (b, c, h, w), clean.
        steps: how many, 1 to T, or a `Grid`.
        iterations: evaluations a step. 1 takes the prediction at the step's lower end, an error of first order; more solve the
            implicit step by fixed-point iteration (Pan et al. 2023), until DDIM comes back to float rounding.
        spacing, clean: see `make_grid`.
        callback: see `Callback`.

    Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    if iterations < 1:
        raise UsageError(f"inversion with {iterations} iterations a step: at least 1 is needed")
    grid = make_grid(schedule, steps, spacing, clean=clean)
    x = latents if latents.dtype == torch.float64 else latents.float()
    for i in range(len(grid) - 1, -1, -1):
        above = x
        for _ in range(iterations):
            x0 = predict(denoiser, above, grid.timesteps[i])
            above = _up(x, x0, above, grid, i)
        x = above
        if callback:
            callback(len(grid) - i, len(grid), x, x0)
    return x / grid.scale


def _up(x: Tensor, x0: Tensor, above: Tensor, grid: Grid, i: int) -> Tensor:
    """x at node `i` from x at node `i + 1`, with the x_0 that was predicted for the guess `above`."""
    if grid.rho(i + 1) > 1:
        # Mostly noise: x_0 is held and eps follows from x. Near pure noise the other way would learn nothing.
        return grid.alpha[i] * x0 + grid.sigma[i] / grid.sigma[i + 1] * (x - grid.alpha[i + 1] * x0)
    eps = (above - grid.alpha[i] * x0) / grid.sigma[i]
    return grid.alpha[i] / grid.alpha[i + 1] * (x - grid.sigma[i + 1] * eps) + grid.sigma[i] * eps
