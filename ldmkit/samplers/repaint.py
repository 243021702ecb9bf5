"""RePaint: inpainting by replacement, with resampling (Lugmayr et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.errors import UsageError
from ldmkit.samplers.contract import Callback, Generators, begin, noise_of, predict
from ldmkit.samplers.grid import Grid, Spacing, make_grid
from ldmkit.schedules import Schedule


@torch.no_grad()
def repaint(
    denoiser: X0Predictor,
    noise: Tensor,
    schedule: Schedule,
    steps: int | Grid,
    *,
    known: Tensor,
    mask: Tensor,
    jump: int = 10,
    resample: int = 10,
    eta: float = 1.0,
    spacing: Spacing = "trailing",
    clean: bool = True,
    generators: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Lugmayr et al. 2022, algorithm 1: before each step the known part is noised anew, and stretches are gone over again.

    With resample=1 and spacing "compvis" this is the released DDIM's masked sampling (its known part keeps the last noise level).

    Args:
        denoiser: (x_t, t) -> x_0.
        noise: (b, c, h, w), unit normal.
        steps: how many, 1 to T, or a `Grid`. The evaluations are `resample` times that, nearly.
        known: (b, c, h, w), clean latents.
        mask: broadcasts against it, in [0, 1]; 1 keeps, 0 generates.
        jump: steps gone back at a time.
        resample: how often each stretch is gone over; 1 never goes back.
        eta: the share of noise in a DDIM step.
        spacing, clean: see `make_grid`.
        generators: one a row.
        callback: see `Callback`; the steps in all count those gone over again.

    Returns latents (b, c, h, w); the known part is `known` itself where `clean`. Raises UsageError for impossible steps or jumps.
    """
    if jump < 1 or resample < 1:
        raise UsageError(f"repaint with jump {jump} and resample {resample}: both are at least 1")
    grid = make_grid(schedule, steps, spacing, clean=clean)
    moves = list(_moves(len(grid), jump, resample))
    known, mask = known.to(noise), mask.to(noise)
    x = begin(noise, grid)
    for done, (i, back) in enumerate(moves):
        if back:
            kept = grid.alpha[i - back] / grid.alpha[i]
            spread = math.sqrt(max(grid.sigma[i - back] ** 2 - (kept * grid.sigma[i]) ** 2, 0.0))
            x = kept * x + spread * noise_of(x, generators)
            i -= back
        x = torch.lerp(x, grid.alpha[i] * known + grid.sigma[i] * noise_of(x, generators), mask)
        x0 = predict(denoiser, x, grid.timesteps[i])
        eps = (x - grid.alpha[i] * x0) / grid.sigma[i]
        spread = eta * grid.sigma[i + 1] * math.sqrt(-math.expm1(grid.log_snr[i] - grid.log_snr[i + 1]))
        x = grid.alpha[i + 1] * x0 + math.sqrt(max(grid.sigma[i + 1] ** 2 - spread**2, 0.0)) * eps
        if spread:
            x = x + spread * noise_of(x, generators)
        if callback:
            callback(done + 1, len(moves), x, x0)
    return torch.lerp(x, known, mask) if grid.clean else x


def _moves(steps: int, jump: int, resample: int) -> Iterator[tuple[int, int]]:
    """(node, how many nodes to go back first) of every step taken: the paper's schedule, figure 9.

    A stretch of `jump` steps is gone over `resample` times; the last step, which ends on the data, once.
    """
    again = dict.fromkeys(range(steps - 1, jump - 1, -jump), resample - 1)
    i = 0
    while i < steps:
        back = jump if again.get(i, 0) else 0
        if back:
            again[i] -= 1
        yield i, back
        i = i - back + 1
