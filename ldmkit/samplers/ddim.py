"""DDIM (Song et al. 2020)."""

from __future__ import annotations

import math

from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.clipping import Clipped
from ldmkit.samplers.contract import Callback, Generators, NotNegative, Share, noise_of, sampler, solve
from ldmkit.samplers.grid import Grid, make_grid
from ldmkit.samplers.spacing import Spacing
from ldmkit.schedules import Schedule


@sampler
def ddim(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    eta: Share = 0.0,
    temperature: NotNegative = 1.0,
    clipped_eps: bool = True,
    spacing: Spacing = "trailing",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Song et al. 2020, eq. 12: x_s = alpha_s x_0 + sqrt(sigma_s^2 - d^2) eps + d z, first order.

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself.
        eta: share of the posterior's standard deviation that is drawn anew each step: 0 is deterministic, 1 is DDPM.
        temperature: factor on the noise drawn.
        clipped_eps: where the denoiser's x_0 is clipped, whether eps is that of the clipped x_0, or stays the network's own
            (False: diffusers' `DDIMScheduler` where it clips).
        spacing, clean: see `make_grid`. `spacing="compvis"` is the released code's sampler, step for step.
        generators: one a row; needed for eta > 0.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = make_grid(schedule, steps, spacing, clean=clean)
    network, bound = denoiser, None
    if isinstance(denoiser, Clipped) and not clipped_eps:
        network, bound = denoiser.unbounded, denoiser.bound

    def step(i: int, x: Tensor, x0: Tensor) -> Tensor:
        eps = (x - grid.alpha[i] * x0) / grid.sigma[i]
        if bound:
            x0 = bound(x0)
        alpha, sigma, log_snr = grid.end(i)
        # eta sigma_s sqrt(1 - SNR_t / SNR_s), the posterior's standard deviation on any schedule
        spread = eta * sigma * math.sqrt(-math.expm1(grid.log_snr[i] - log_snr))
        x = alpha * x0 + math.sqrt(max(sigma**2 - spread**2, 0.0)) * eps
        if spread:
            x = x + temperature * spread * noise_of(x, generators)
        return x

    return solve(network, noise, grid, step, callback)
