"""LMS: linear multistep in rho (Crowson's k-diffusion)."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, sampler, solve
from ldmkit.samplers.grid import Grid, make_grid
from ldmkit.samplers.ode_coordinates import Frame
from ldmkit.samplers.spacing import Spacing
from ldmkit.schedules import Schedule


@sampler
def lms(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    order: Annotated[int, Field(ge=1, le=4)] = 4,
    spacing: Spacing = "quadratic",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Adams-Bashforth for uneven steps in rho = sigma / alpha (on a rectified flow, in sigma); one evaluation a step.

    While x is noise alone (zero terminal SNR, the first levels of `sqrt`) the steps are Euler's: memory begins after it.

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
    grid = make_grid(schedule, steps, spacing, clean=clean)
    frame = Frame(grid)
    slopes: list[Tensor] = []  # the newest first

    def step(i: int, x: Tensor, x0: Tensor) -> Tensor:
        nonlocal slopes
        # Nodes of noise alone lie on one another: no slope between them is remembered.
        slopes = [frame.slope(x, x0, i), *([] if grid.pure_at(i) else slopes[: order - 1])]
        weights = _weights([frame.position(j) for j in range(i, i - len(slopes), -1)], frame.position(i + 1))
        x = frame.euler(x, x0, i)
        for weight, slope in zip(weights[1:], slopes[1:], strict=True):
            x = x + frame.bend(slope - slopes[0], weight, i)
        return x

    return solve(denoiser, noise, grid, step, callback)


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
