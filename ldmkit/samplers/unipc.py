"""UniPC: a predictor and a corrector in one evaluation (Zhao et al. 2023)."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.samplers.contract import Callback, Generators, sampler, solve
from ldmkit.samplers.grid import Grid, make_grid
from ldmkit.samplers.spacing import Spacing
from ldmkit.schedules import Schedule

Variant = Literal["bh1", "bh2"]


@sampler
def unipc(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    order: Annotated[int, Field(ge=1, le=3)] = 2,
    variant: Variant = "bh2",
    lower_order_final: bool = True,
    spacing: Spacing = "quadratic",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Zhao et al. 2023, algorithm 2, on x_0: each evaluation corrects the step that led to it, then predicts the next.

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`, which says `spacing` and `clean` itself.
        order: 1 to 3 of the predictor (the corrector's is one more).
        variant: the paper's B(h): bh1 is h, bh2 is e^h - 1.
        lower_order_final: the last steps are of lower order, however many there are.
        spacing, clean: see `make_grid`.
        generators: not used; the sampler is deterministic.
        callback: see `Callback`.

    Returns latents (b, c, h, w). Raises UsageError for impossible steps, DivergedError for a network that is not finite.
    """
    grid = make_grid(schedule, steps, spacing, clean=clean)
    history: list[Tensor] = []  # of x_0, the newest first
    start, used = noise, 0

    def step(i: int, x: Tensor, x0: Tensor) -> Tensor:
        nonlocal history, start, used
        if i > 0:
            x = _step(start, history, grid, i - 1, used, variant, arrived=x0)
        history = [x0, *history[:2]]
        last = i + 1 == len(grid) and grid.clean
        used = 1 if last else min(order, i + 1, len(grid) - i if lower_order_final else order)
        start = x
        return _step(x, history, grid, i, used, variant, arrived=None)

    return solve(denoiser, noise, grid, step, callback)


def _step(
    x: Tensor, history: list[Tensor], grid: Grid, i: int, order: int, variant: Variant, *, arrived: Tensor | None
) -> Tensor:
    """From node `i` to the next, with x_0 at `order` nodes (newest first): UniP; with x_0 at the end, `arrived`: UniC."""
    h = grid.lam(i + 1) - grid.lam(i)
    moved = grid.sigma[i + 1] / grid.sigma[i] * x - grid.alpha[i + 1] * math.expm1(-h) * history[0]
    ratios = [(grid.lam(i - k) - grid.lam(i)) / h for k in range(1, order)] if h else []
    slopes = [(old - history[0]) / r for r, old in zip(ratios, history[1:order], strict=False)]
    if arrived is not None:
        slopes, ratios = [*slopes, arrived - history[0]], [*ratios, 1.0]
    if not slopes or not h:
        return moved
    scale = -h if variant == "bh1" else math.expm1(-h)
    weights = _weights(ratios, h, scale)
    bend = sum((w * slope for w, slope in zip(weights, slopes, strict=True)), torch.zeros_like(x))
    return moved - grid.alpha[i + 1] * scale * bend


def _weights(ratios: list[float], h: float, scale: float) -> list[float]:
    """Zhao et al. 2023, eq. 7: R(ratios) weights = phi(h) / B(h)."""
    if len(ratios) == 1:
        # Order 1 of the corrector and 2 of the predictor: the paper's simplification, exact in the limit of small h.
        return [0.5]
    phi, factorial, right = math.expm1(-h) / -h - 1, 1.0, []
    for k in range(1, len(ratios) + 1):
        right.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    left = np.power(np.array([ratios]), np.arange(len(ratios))[:, None])
    return [float(w) for w in np.linalg.solve(left, np.array(right))]
