"""DPM-Solver, multistep, on eps (Lu et al. 2022)."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, order_at, sampler, solve
from ldmkit.samplers.grid import Grid, make_grid
from ldmkit.samplers.spacing import Spacing
from ldmkit.schedules import Schedule


@sampler
def dpm_solver(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    order: Annotated[int, Field(ge=1, le=3)] = 2,
    lower_order_final: bool = True,
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
        order: 1 (DDIM), 2 or 3.
        lower_order_final: the last steps are of lower order where there are fewer than 15.
        spacing, clean: see `make_grid`.
        generators: not used; the sampler is deterministic.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = make_grid(schedule, steps, spacing, clean=clean)
    history: list[Tensor] = []  # of eps, the newest first

    def step(i: int, x: Tensor, x0: Tensor) -> Tensor:
        nonlocal history
        history = [(x - grid.alpha[i] * x0) / grid.sigma[i], *history[:2]]
        x = grid.alpha[i + 1] * x0 + grid.sigma[i + 1] * history[0]
        return x + _correction(history[: order_at(i, grid, order, lower_order_final)], grid, i)

    return solve(denoiser, noise, grid, step, callback)


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
