"""What all samplers share: how one starts, asks its denoiser, and draws noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Annotated, Any, ParamSpec, get_args, get_origin, get_type_hints

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Generator, Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.errors import DivergedError, UsageError
from ldmkit.random import normal
from ldmkit.samplers.grid import Grid

# sampler(denoiser, noise, schedule, steps, *, <its options>, generators=None, callback=None) -> latents (b, c, h, w)
Sampler = Callable[..., Tensor]
# callback(steps done, steps in all, x (b, c, h, w) after the step, the x_0 predicted in it)
Callback = Callable[[int, int, Tensor, Tensor], None]
# step(i, x (b, c, h, w) at timestep i, the x_0 predicted there) -> x at timestep i + 1
Step = Callable[[int, Tensor, Tensor], Tensor]
P = ParamSpec("P")
# Ranges of options: what a recipe, `sample` or a direct call gives is checked by them.
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
# One a row, on the CPU; a deterministic sampler takes them and draws nothing.
Generators = Sequence[Generator] | None


def sampler(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """`function` without gradients, its options checked against the ranges of their annotations.

    Raises UsageError in a call with an option outside its range, naming it and what is allowed.
    """
    ranges = cache(lambda: _ranges(function))

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        for name, value in kwargs.items():
            if name in ranges():
                _check(function.__name__, name, value, ranges()[name])
        with torch.no_grad():
            return function(*args, **kwargs)

    return checked


def solve(denoiser: X0Predictor, noise: Tensor, grid: Grid, step: Step, callback: Callback | None) -> Tensor:
    """The loop of every sampler that asks its denoiser once a step: from `noise` (b, c, h, w) down the grid.

    Raises UsageError and DivergedError as `predict` does.
    """
    x = begin(noise, grid)
    for i, t in enumerate(grid.timesteps):
        x0 = predict(denoiser, x, t)
        x = step(i, x, x0)
        if callback:
            callback(i + 1, len(grid), x, x0)
    return x


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


def order_at(i: int, grid: Grid, order: int, lower_order_final: bool) -> int:
    """The order of step `i` of a multistep solver: what is remembered allows, 1 in the step that ends on the data.

    `lower_order_final`: also falling to 1 at the end of fewer than 15 steps.
    """
    left = len(grid) - i
    if lower_order_final and len(grid) < 15:
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


def _ranges(function: Callable[..., Tensor]) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(function, include_extras=True)
    return {name: TypeAdapter(hint) for name, hint in hints.items() if any(map(_ranged, (hint, *get_args(hint))))}


def _ranged(hint: object) -> bool:
    return get_origin(hint) is Annotated


def _check(sampler_name: str, name: str, value: object, allowed: TypeAdapter[Any]) -> None:
    try:
        allowed.validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Input ")
        raise UsageError(f"option {name} of {sampler_name} is {value!r}: it {problem}") from error
