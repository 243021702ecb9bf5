"""DEIS: exponential integrator with polynomials in log rho (Zhang and Chen 2022)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.errors import UsageError
from ldmkit.samplers.contract import Callback, Generators, begin, order_at, predict
from ldmkit.samplers.grid import Grid, Spacing, make_grid
from ldmkit.schedules import Schedule


@torch.no_grad()
def deis(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    order: int = 3,
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
        order: how many values of eps are remembered, 1 (DDIM) to 3; the last steps have fewer where there are fewer than 15.
        spacing, clean: see `make_grid`.
        generators: not used; the sampler is deterministic.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    if order not in (1, 2, 3):
        raise UsageError(f"DEIS of order {order}: there are 1, 2 and 3")
    grid = make_grid(schedule, steps, spacing, clean=clean)
    x = begin(noise, grid)
    history: list[Tensor] = []
    for i, t in enumerate(grid.timesteps):
        x0 = predict(denoiser, x, t)
        history = [(x - grid.alpha[i] * x0) / grid.sigma[i], *history[:2]]
        x = grid.alpha[i + 1] * x0 + grid.sigma[i + 1] * history[0]
        used = order_at(i, grid, order)
        if used > 1:
            weights = _weights([grid.lam(i) - grid.lam(i - k) for k in range(used)], grid.lam(i + 1) - grid.lam(i))
            for weight, old in zip(weights[1:], history[1:used], strict=True):
                x = x + grid.alpha[i + 1] * grid.rho(i) * weight * (old - history[0])
        if callback:
            callback(i + 1, len(grid), x, x0)
    return x


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
