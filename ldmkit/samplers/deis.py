"""DEIS: exponential integrator with polynomials in log rho (Zhang and Chen 2022)."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, order_at, sampler, solve
from ldmkit.samplers.grid import Grid, make_grid
from ldmkit.samplers.spacing import Spacing
from ldmkit.schedules import Schedule


@sampler
def deis(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    order: Annotated[int, Field(ge=1, le=3)] = 3,
    lower_order_final: bool = True,
    spacing: Spacing = "quadratic",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """x / alpha gains the integral of eps over rho = sigma / alpha, eps being a polynomial in log rho; one evaluation a step.

    Zhang and Chen 2022, eq. 15, with log rho for the polynomial's variable (diffusers' `logrho`).

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself.
        order: how many values of eps are remembered, 1 (DDIM) to 3.
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
        used = order_at(i, grid, order, lower_order_final)
        if used > 1:
            weights = _weights([grid.lam(i) - grid.lam(i - k) for k in range(used)], grid.lam(i + 1) - grid.lam(i))
            for weight, old in zip(weights[1:], history[1:used], strict=True):
                x = x + grid.alpha[i + 1] * grid.rho(i) * weight * (old - history[0])
        return x

    return solve(denoiser, noise, grid, step, callback)


def _weights(nodes: list[float], h: float) -> list[float]:
    """The integral of e^v from 0 to -h times each Lagrange polynomial in v = log(rho / rho_0) with roots at `nodes`."""
    fall = math.exp(-h)
    moments = np.array([fall - 1, 1 - (h + 1) * fall, (h * h + 2 * h + 2) * fall - 2])
    weights = []
    for j, node in enumerate(nodes):
        others = nodes[:j] + nodes[j + 1 :]
        polynomial = np.polynomial.polynomial.polyfromroots(others) / math.prod(node - other for other in others)
        weights.append(float(polynomial @ moments[: len(polynomial)]))
    return weights
