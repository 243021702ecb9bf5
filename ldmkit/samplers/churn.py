"""Churn: before a step, go back to a higher noise level with fresh noise (Karras et al. 2022, algorithm 2)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmkit.samplers.contract import Generators, noise_of
from ldmkit.samplers.grid import Grid
from ldmkit.schedules import Schedule


@dataclass(frozen=True)
class Churn:
    """`amount` is Karras' S_churn, spread over all steps; `low` and `high` bound rho = sigma / alpha; `scale` is S_noise."""

    amount: float
    low: float
    high: float | None
    scale: float

    def __call__(
        self, x: Tensor, grid: Grid, i: int, schedule: Schedule, generators: Generators
    ) -> tuple[Tensor, Grid]:
        """x at node `i` with rho raised by the factor 1 + min(amount / n, sqrt(2) - 1), and the grid with that node moved.

        Never above the grid's first rho: the network knows nothing there.
        """
        rho = grid.rho(i)
        raised = min(rho * (1 + min(self.amount / len(grid), math.sqrt(2) - 1)), grid.rho(0))
        if rho < self.low or (self.high is not None and rho > self.high) or raised <= rho:
            return x, grid
        log_snr = torch.tensor(-2 * math.log(raised), dtype=torch.float64)
        alpha, sigma = (float(part) for part in schedule.coefficients(log_snr))
        kept = alpha / grid.alpha[i]
        added = math.sqrt(max(sigma**2 - (kept * grid.sigma[i]) ** 2, 0.0))
        x = kept * x + added * self.scale * noise_of(x, generators)
        return x, dataclasses.replace(
            grid,
            timesteps=_put(grid.timesteps, i, float(schedule.timestep(log_snr))),
            alpha=_put(grid.alpha, i, alpha),
            sigma=_put(grid.sigma, i, sigma),
            log_snr=_put(grid.log_snr, i, float(log_snr)),
        )


def _put(values: tuple[float, ...], i: int, value: float) -> tuple[float, ...]:
    return (*values[:i], value, *values[i + 1 :])
