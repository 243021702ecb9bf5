"""Euler on the probability-flow equation, with churn (Karras et al. 2022)."""

from __future__ import annotations

from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.churn import Churn
from ldmkit.samplers.contract import Callback, Generators, NotNegative, begin, predict, sampler
from ldmkit.samplers.grid import Grid, make_grid
from ldmkit.samplers.ode_coordinates import Frame
from ldmkit.samplers.spacing import Spacing
from ldmkit.schedules import Schedule


@sampler
def euler(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    s_churn: NotNegative = 0.0,
    s_tmin: NotNegative = 0.0,
    s_tmax: NotNegative | None = None,
    s_noise: NotNegative = 1.0,
    spacing: Spacing = "trailing",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """First order in rho = sigma / alpha: without churn the same step as `ddim`'s.

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself.
        s_churn, s_tmin, s_tmax, s_noise: how much noise each step adds first, for which rho (None: without an upper bound), and a
            factor on it: see `Churn`.
        spacing, clean: see `make_grid`.
        generators: one a row; needed for s_churn > 0.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = make_grid(schedule, steps, spacing, clean=clean)
    x = begin(noise, grid)
    churn = Churn(s_churn, s_tmin, s_tmax, s_noise)
    for i in range(len(grid)):
        x, here = churn(x, grid, i, schedule, generators)
        x0 = predict(denoiser, x, here.timesteps[i])
        x = Frame(here).euler(x, x0, i)
        if callback:
            callback(i + 1, len(grid), x, x0)
    return x
