"""LMS: linear multistep in rho (Crowson's k-diffusion)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.errors import UsageError
from ldmkit.samplers.contract import Callback, Generators, begin, predict
from ldmkit.samplers.grid import Grid, Spacing, make_grid
from ldmkit.samplers.ode_coordinates import Frame
from ldmkit.schedules import Schedule


@torch.no_grad()
def lms(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    order: int = 4,
    spacing: Spacing = "quadratic",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Adams-Bashforth for uneven steps in rho = sigma / alpha (on a rectified flow, in sigma); one evaluation a step.

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself.
        order: how many slopes are remembered, 1 to 4; the first steps have fewer.
        spacing, clean: see `make_grid`.
        generators: not used; the sampler is deterministic.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    if not 1 <= order <= 4:
        raise UsageError(f"LMS of order {order}: there are 1 to 4")
    grid = make_grid(schedule, steps, spacing, clean=clean)
    frame = Frame(grid)
    x = begin(noise, grid)
    slopes: list[Tensor] = []
    for i, t in enumerate(grid.timesteps):
        x0 = predict(denoiser, x, t)
        slopes = [frame.slope(x, x0, i), *slopes[: order - 1]]
        weights = _weights([frame.position(j) for j in range(i, i - len(slopes), -1)], frame.position(i + 1))
        x = frame.euler(x, x0, i)
        for weight, slope in zip(weights[1:], slopes[1:], strict=True):
            x = x + frame.bend(slope - slopes[0], weight, i)
        if callback:
            callback(i + 1, len(grid), x, x0)
    return x


def _weights(nodes: list[float], end: float) -> list[float]:
    """The integral from `nodes[0]` to `end` of each Lagrange polynomial on `nodes`, exactly: two Gauss points serve cubics."""
    points, measure = np.polynomial.legendre.leggauss(2)
    half = (end - nodes[0]) / 2
    at = nodes[0] + half * (points + 1)
    weights = []
    for j, node in enumerate(nodes):
        others = nodes[:j] + nodes[j + 1 :]
        values = np.prod([(at - other) / (node - other) for other in others], axis=0) if others else np.ones(2)
        weights.append(float(half * (measure * values).sum()))
    return weights
