"""PLMS: pseudo linear multistep (Liu et al. 2022, "Pseudo numerical methods for diffusion models on manifolds")."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, begin, predict
from ldmkit.samplers.grid import Grid, Spacing, make_grid
from ldmkit.schedules import Schedule

# Adams-Bashforth on eps, newest first: Liu et al. 2022, eq. 12 and its lower orders.
_WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@torch.no_grad()
def plms(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    spacing: Spacing = "quadratic",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM steps along eps extrapolated from the last four; n steps cost n + 1 evaluations.

    Fourth-order weights, but of second order in all, as pseudo numerical methods are: the step itself is exact for an eps that
    stays the same. Its errors are a few times smaller than those of `dpmpp_2m` where timesteps are even.

    The first step is pseudo improved Euler, as in the released code and diffusers' `PNDMScheduler(skip_prk_steps=True)`.
    Even spacing is what its weights are made for. Where x starts as noise alone (zero terminal SNR) the first step is DDIM.

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself.
        spacing, clean: see `make_grid`. `spacing="compvis"` is the released code's sampler, step for step.
        generators: not used; the sampler is deterministic.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = make_grid(schedule, steps, spacing, clean=clean)
    x = begin(noise, grid)
    history: list[Tensor] = []
    for i, t in enumerate(grid.timesteps):
        x0 = predict(denoiser, x, t)
        history = [(x - grid.alpha[i] * x0) / grid.sigma[i], *history[:3]]
        if i == 0 and grid.pure:
            x = grid.alpha[1] * x0 + grid.sigma[1] * history[0]
        elif i == 0 and len(grid) > 1:
            ahead = _transfer(x, history[0], grid, 0)
            again = (ahead - grid.alpha[1] * predict(denoiser, ahead, grid.timesteps[1])) / grid.sigma[1]
            x = _transfer(x, (history[0] + again) / 2, grid, 0)
        else:
            weights = _WEIGHTS[len(history) - 1]
            eps = sum((w * old for w, old in zip(weights, history, strict=True)), torch.zeros_like(x))
            x = _transfer(x, eps, grid, i)
        if callback:
            callback(i + 1, len(grid), x, x0)
    return x


def _transfer(x: Tensor, eps: Tensor, grid: Grid, i: int) -> Tensor:
    """A DDIM step from node `i` along `eps`: Liu et al. 2022, eq. 11."""
    return grid.alpha[i + 1] / grid.alpha[i] * (x - grid.sigma[i] * eps) + grid.sigma[i + 1] * eps
