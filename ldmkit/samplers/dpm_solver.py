"""DPM-Solver, multistep, on eps (Lu et al. 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.errors import UsageError
from ldmkit.samplers.contract import Callback, Generators, begin, order_at, predict
from ldmkit.samplers.grid import Grid, Spacing, make_grid
from ldmkit.schedules import Schedule


@torch.no_grad()
def dpm_solver(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    order: int = 2,
    spacing: Spacing = "quadratic",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Exponential integrator in lambda = log(alpha / sigma) of the noise prediction; one evaluation a step.

    With guidance, DPM-Solver++ (`dpmpp_2m`), which integrates x_0, is the steadier one.

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself.
        order: 1 (DDIM), 2 or 3; the last steps are of lower order where there are fewer than 15.
        spacing, clean: see `make_grid`.
        generators: not used; the sampler is deterministic.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    if order not in (1, 2, 3):
        raise UsageError(f"DPM-Solver of order {order}: there are 1, 2 and 3")
    grid = make_grid(schedule, steps, spacing, clean=clean)
    x = begin(noise, grid)
    history: list[Tensor] = []
    for i, t in enumerate(grid.timesteps):
        x0 = predict(denoiser, x, t)
        history = [(x - grid.alpha[i] * x0) / grid.sigma[i], *history[:2]]
        x = grid.alpha[i + 1] * x0 + grid.sigma[i + 1] * history[0]
        x = x + _correction(history[: order_at(i, grid, order)], grid, i)
        if callback:
            callback(i + 1, len(grid), x, x0)
    return x


def _correction(history: list[Tensor], grid: Grid, i: int) -> Tensor | float:
    """What the derivatives of eps add to a DDIM step: Lu et al. 2022, eq. 3.7, midpoint form for order 2."""
    if len(history) == 1:
        return 0.0
    h, h0 = grid.lam(i + 1) - grid.lam(i), grid.lam(i) - grid.lam(i - 1)
    first = (history[0] - history[1]) * (h / h0)
    if len(history) == 2:
        return -0.5 * grid.sigma[i + 1] * math.expm1(h) * first
    h1 = grid.lam(i - 1) - grid.lam(i - 2)
    older = (history[1] - history[2]) * (h / h1)
    second = (first - older) * (h / (h0 + h1))
    first = first + (first - older) * (h0 / (h0 + h1))
    return -grid.sigma[i + 1] * ((math.expm1(h) / h - 1) * first + ((math.expm1(h) - h) / h**2 - 0.5) * second)
