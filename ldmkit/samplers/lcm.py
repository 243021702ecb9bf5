"""LCM: multistep sampling of a latent consistency model (Luo et al. 2023)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.errors import UsageError
from ldmkit.samplers.contract import Callback, Generators, noise_of, sampler, solve
from ldmkit.samplers.grid import Grid, make_grid
from ldmkit.samplers.spacing import Given
from ldmkit.schedules import Schedule

_SIGMA_DATA = 0.5  # of the boundary condition: Luo et al. 2023, appendix D


@sampler
def lcm(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    original_steps: int = 50,
    timestep_scaling: float = 10.0,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Luo et al. 2023, algorithm 3: jump to x_0, noise it to the next level, again.

    For a network distilled to that, in 1 to 8 steps. The jump
    is c_skip x + c_out x_0, which at timestep 0 is x itself (eq. 9; diffusers' `LCMScheduler`).

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to `original_steps`, or a `Grid`.
        original_steps: of the sampler that was distilled; the timesteps are among its own.
        timestep_scaling: factor on t in c_skip and c_out; 10 in the paper's code.
        generators: one a row; needed for more than one step.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = distilled_grid(schedule, steps, original_steps)

    def jump(x: Tensor, t: Tensor) -> Tensor:
        scaled = float(t[0]) * timestep_scaling
        skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        out = scaled / (scaled**2 + _SIGMA_DATA**2) ** 0.5
        x0: Tensor = out * denoiser(x, t).to(x.dtype) + skip * x
        return x0

    def step(i: int, x: Tensor, x0: Tensor) -> Tensor:
        last = i + 1 == len(grid)
        return x0 if last else grid.alpha[i + 1] * x0 + grid.sigma[i + 1] * noise_of(x, generators)

    return solve(jump, noise, grid, step, callback)


def distilled_grid(schedule: Schedule, steps: int | Grid, original: int) -> Grid:
    """`steps` of the `original` steps of a distilled sampler, whose timesteps are k T // original - 1. Raises UsageError."""
    if isinstance(steps, Grid):
        return steps
    if not 1 <= original <= schedule.timesteps:
        raise UsageError(
            f"original_steps {original}: 1 to {schedule.timesteps} (the schedule's timesteps) are possible"
        )
    if not 1 <= steps <= original:
        raise UsageError(f"{steps} sampling steps of {original} original_steps: 1 to {original} are possible")
    places = np.floor(np.linspace(0, original, steps, endpoint=False))
    stride = schedule.timesteps // original
    return make_grid(schedule, steps, Given(timesteps=tuple(float((original - p) * stride - 1) for p in places)))
