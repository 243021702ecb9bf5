"""DPM-Solver++ 2S: single-step, second order (Lu et al. 2022b)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, Share, ancestral, begin, noise_of, predict, sampler
from ldmkit.samplers.grid import Grid, make_grid
from ldmkit.samplers.spacing import Spacing
from ldmkit.schedules import Schedule


@sampler
def dpmpp_2s(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    paired: bool = False,
    eta: Share = 0.0,
    lower_order_final: bool = True,
    spacing: Spacing = "quadratic",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Lu et al. 2022b, algorithm 1: each step goes by way of a point between, where x_0 is evaluated again.

    Two conventions are in use:
        paired=False (k-diffusion, sgm): the point between is halfway in lambda; n steps cost 2 n - 1 evaluations where the
            last ends on the data; `eta` > 0 makes it ancestral.
        paired=True (the paper's code, diffusers' `DPMSolverSinglestepScheduler`): every second node is the point between, n steps
            cost n evaluations; deterministic.

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself.
        paired: see above.
        eta: share of the ancestral step's noise; not with `paired`.
        lower_order_final: the last two of an even number of paired steps are of first order; always so if they end on the data.
        spacing, clean: see `make_grid`.
        generators: one a row; needed for eta > 0.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = make_grid(schedule, steps, spacing, clean=clean)
    x = begin(noise, grid)
    if paired:
        return _paired(denoiser, x, grid, lower_order_final or grid.clean, callback)
    for i, t in enumerate(grid.timesteps):
        x0 = ahead = predict(denoiser, x, t)
        down, up = ancestral(grid, i, eta)
        if down == 0:
            x = grid.alpha[i + 1] * x0
        else:
            # rho falls from grid.rho(i) to `down`; the point between is their geometric mean
            middle = math.sqrt(grid.rho(i) * down)
            log_snr = torch.tensor(-2 * math.log(middle), dtype=torch.float64)
            alpha, sigma = (float(part) for part in schedule.coefficients(log_snr))
            between = sigma / grid.sigma[i] * x + alpha * (1 - middle / grid.rho(i)) * x0
            ahead = predict(denoiser, between, float(schedule.timestep(log_snr)))
            x = grid.alpha[i + 1] * (down / grid.sigma[i] * x + (1 - down / grid.rho(i)) * ahead)
        if up:
            x = x + grid.alpha[i + 1] * up * noise_of(x, generators)
        if callback:
            callback(i + 1, len(grid), x, ahead)
    return x


def _paired(denoiser: X0Predictor, x: Tensor, grid: Grid, lower: bool, callback: Callback | None) -> Tensor:
    i = 0
    while i < len(grid):
        x0 = predict(denoiser, x, grid.timesteps[i])
        between = _step(x, x0, grid, i, i + 1)
        if callback:
            callback(i + 1, len(grid), between, x0)
        if i + 2 < len(grid) or (i + 2 == len(grid) and not lower):
            ahead = predict(denoiser, between, grid.timesteps[i + 1])
            ratio = (grid.lam(i + 2) - grid.lam(i)) / (grid.lam(i + 1) - grid.lam(i))
            x = _step(x, x0 + 0.5 * ratio * (ahead - x0), grid, i, i + 2)
            if callback:
                callback(i + 2, len(grid), x, ahead)
            i += 2
        else:
            x = between
            i += 1
    return x


def _step(x: Tensor, x0: Tensor, grid: Grid, i: int, j: int) -> Tensor:
    """From node `i` to node `j` with constant x_0: Lu et al. 2022b, eq. 9."""
    return grid.sigma[j] / grid.sigma[i] * x - grid.alpha[j] * math.expm1(grid.lam(i) - grid.lam(j)) * x0
