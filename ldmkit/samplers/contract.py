"""What all samplers share: how one starts, asks its denoiser, and draws noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.errors import DivergedError, UsageError
from ldmkit.random import normal
from ldmkit.samplers.grid import Grid

# sampler(denoiser, noise, schedule, steps, *, <its options>, generators=None, callback=None) -> latents (b, c, h, w)
Sampler = Callable[..., Tensor]
# callback(steps done, steps in all, x (b, c, h, w) after the step, the x_0 predicted in it)
Callback = Callable[[int, int, Tensor, Tensor], None]
# One a row, on the CPU; a deterministic sampler takes them and draws nothing.
Generators = Sequence[Generator] | None


def begin(noise: Tensor, grid: Grid) -> Tensor:
    """x at the first timestep: float64 for float64 noise, else float32 whatever the network's precision."""
    return (noise if noise.dtype == torch.float64 else noise.float()) * grid.scale


def predict(denoiser: X0Predictor, x: Tensor, t: float) -> Tensor:
    """x_0 (b, c, h, w) in x's dtype. Raises DivergedError, naming the timestep, where it is not finite."""
    x0 = denoiser(x, torch.full((len(x),), t, dtype=torch.float32, device=x.device)).to(x.dtype)
    if x0.shape != x.shape:
        raise UsageError(
            f"the denoiser answered {tuple(x0.shape)} to latents of {tuple(x.shape)}: both must be the same"
        )
    if not bool(torch.isfinite(x0).all()):
        raise DivergedError(
            f"the network's answer at timestep {t:g} is not finite",
            hint="the weights have diverged, or the precision is too low: try float32 or a lower guidance",
        )
    return x0


def noise_of(x: Tensor, generators: Generators) -> Tensor:
    """Unit normal noise like x, row i from `generators[i]` alone, drawn on the CPU."""
    if generators is None or len(generators) != len(x):
        given = "none" if generators is None else str(len(generators))
        raise UsageError(
            f"this sampler draws noise: it needs one generator a row, {len(x)} of them, and got {given}",
            hint="ldmkit.random.sample_generators(seed, count) makes them",
        )
    return normal(generators, x.shape[1:]).to(x)


def order_at(i: int, grid: Grid, order: int) -> int:
    """The order of step `i` of a multistep solver: what is remembered allows, lower at the end of few steps or on the data."""
    left = len(grid) - i
    if len(grid) < 15:
        order = min(order, left)
    elif left == 1 and grid.clean:
        order = 1
    return min(order, i + 1)


def ancestral(grid: Grid, i: int, eta: float) -> tuple[float, float]:
    """How far step `i` goes down in rho = sigma / alpha, and the noise that brings it up again: down^2 + up^2 = rho_next^2."""
    if grid.sigma[i + 1] == 0:
        return 0.0, 0.0
    target = grid.rho(i + 1)
    up = min(target, eta * target * math.sqrt(-math.expm1(grid.log_snr[i] - grid.log_snr[i + 1])))
    return math.sqrt(target**2 - up**2), up
