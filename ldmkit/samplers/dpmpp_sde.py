"""DPM-Solver++ SDE: 2M of the reverse stochastic equation (Lu et al. 2022b, appendix)."""

from __future__ import annotations

import math

from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, NotNegative, noise_of, order_at, sampler, solve
from ldmkit.samplers.grid import Grid, make_grid
from ldmkit.samplers.spacing import Spacing
from ldmkit.schedules import Schedule


@sampler
def dpmpp_sde(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    eta: NotNegative = 1.0,
    lower_order_final: bool = True,
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
        lower_order_final: the last steps are of lower order where there are fewer than 15.
        spacing, clean: see `make_grid`.
        generators: one a row; needed for eta > 0.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = make_grid(schedule, steps, spacing, clean=clean)
    before = noise  # x_0 of the step before

    def step(i: int, x: Tensor, x0: Tensor) -> Tensor:
        nonlocal before
        ahead = x0
        h = grid.lam(i + 1) - grid.lam(i)
        if order_at(i, grid, 2, lower_order_final) == 2:
            ahead = x0 + h / (2 * (grid.lam(i) - grid.lam(i - 1))) * (x0 - before)
        before = x0
        if grid.sigma[i + 1] == 0:
            return ahead
        x = grid.sigma[i + 1] / grid.sigma[i] * math.exp(-eta * h) * x
        x = x - grid.alpha[i + 1] * math.expm1(-(1 + eta) * h) * ahead
        if eta:
            spread = grid.sigma[i + 1] * math.sqrt(-math.expm1(-2 * eta * h))
            x = x + spread * noise_of(x, generators)
        return x

    return solve(denoiser, noise, grid, step, callback)
