"""Heun with churn (Karras et al. 2022, algorithm 2)."""

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
def heun(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    s_churn: NotNegative = 0.0,
    s_tmin: NotNegative = 0.0,
    s_tmax: NotNegative | None = None,
    s_noise: NotNegative = 1.0,
    spacing: Spacing = "quadratic",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Second order: a step along the mean of the slopes at both its ends; n steps cost 2 n - 1 evaluations (2 n if not `clean`).

    In rho = sigma / alpha (k-diffusion, diffusers' `HeunDiscreteScheduler`); on a rectified flow in sigma (diffusers'
    `FlowMatchHeunDiscreteScheduler`); see `Frame`. The step that ends on the data is Euler's.

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
        frame = Frame(here)
        x0 = predict(denoiser, x, here.timesteps[i])
        slope = frame.slope(x, x0, i)
        x = frame.euler(x, x0, i)
        if here.sigma[i + 1] > 0:
            # The end of the last step has a level but, unless it is clean, no timestep of its own: it is timestep 0's.
            x0 = predict(denoiser, x, here.timesteps[i + 1] if i + 1 < len(here) else 0.0)
            half = 0.5 * (frame.position(i + 1) - frame.position(i))
            x = x + frame.bend(frame.slope(x, x0, i + 1) - slope, half, i)
        if callback:
            callback(i + 1, len(grid), x, x0)
    return x
