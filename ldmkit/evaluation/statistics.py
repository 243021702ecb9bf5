"""Intervals: how sure a figure is, given the pictures it was measured on."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.random import generator

Interval = tuple[float, float]


def mean_interval(values: Tensor) -> tuple[float, Interval | None]:
    """The mean of (n,) values and its 95 % interval by the normal approximation; no interval for fewer than two values."""
    values = values.double()
    mean = float(values.mean())
    if values.numel() < 2 or not torch.isfinite(values).all():
        return mean, None
    half = 1.96 * float(values.std()) / values.numel() ** 0.5
    return mean, (mean - half, mean + half)


def ratio_interval(
    numerators: Tensor, denominators: Tensor, *, seed: int = 0, draws: int = 1000
) -> tuple[float, Interval]:
    """sum(numerators) / sum(denominators) over paired rows (n,), and its 95 % percentile bootstrap interval.

    Rows are drawn together, so that what both have in common (an easy picture, a late timestep) cancels.
    Efron & Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    numerators, denominators = numerators.double(), denominators.double()
    rows = numerators.numel()
    index = torch.randint(rows, (draws, rows), generator=generator(seed, "bootstrap", 0))
    ratios = numerators[index].sum(1) / denominators[index].sum(1)
    low, high = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(numerators.sum() / denominators.sum()), (low, high)
