"""Euler ancestral (Crowson's k-diffusion)."""

from __future__ import annotations

from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, NotNegative, Share, ancestral, noise_of, sampler, solve
from ldmkit.samplers.grid import Grid, make_grid
from ldmkit.samplers.spacing import Spacing
from ldmkit.schedules import Schedule


@sampler
def euler_ancestral(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    eta: Share = 1.0,
    s_noise: NotNegative = 1.0,
    spacing: Spacing = "trailing",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """An Euler step in rho = sigma / alpha to below the next level, then noise up to it.

    The same step as `ddim` with that eta, derived from the other side (a test holds the two together).

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself.
        eta: share of the noise; 0 is `euler`.
        s_noise: factor on the noise drawn.
        spacing, clean: see `make_grid`.
        generators: one a row; needed for eta > 0.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = make_grid(schedule, steps, spacing, clean=clean)

    def step(i: int, x: Tensor, x0: Tensor) -> Tensor:
        eps = (x - grid.alpha[i] * x0) / grid.sigma[i]
        down, up = ancestral(grid, i, eta)
        x = grid.alpha[i + 1] * (x0 + down * eps)
        if up:
            x = x + grid.alpha[i + 1] * up * s_noise * noise_of(x, generators)
        return x

    return solve(denoiser, noise, grid, step, callback)
