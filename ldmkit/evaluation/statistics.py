"""Intervals: how sure a figure is, given the images it was measured on.

What is drawn at random from the world is a source image, not a crop of it and not one more sample for the same condition. So
rows that come from one source count together (a cluster), and every interval is over sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ldmkit.random import generator

Interval = tuple[float, float]

LEVEL = 0.95
UNKNOWN: Interval = (-math.inf, math.inf)  # too few sources, or values that are not finite
LEAST_SOURCES = 6  # with k pairs a sign test cannot go below 2^(1-k); it passes under 5 % with six


def quantile_of_t(freedom: int) -> float:
    """The two-sided 95 % point of Student's t with that many degrees of freedom; 1.96 in the limit."""
    from scipy import special  # type: ignore[import-untyped]

    return float(special.stdtrit(freedom, 0.5 + LEVEL / 2))


def count_of(groups: Tensor) -> int:
    """How many different groups there are among (n,) numbers of groups."""
    return len(set(groups.tolist()))


def cluster_error(residuals: Tensor, groups: Tensor) -> tuple[float, int]:
    """The standard error of the mean of (n,) values from their residuals around it, and how many groups there are.

    Rows of one group may depend on each other in any way (Liang & Zeger 1986; with k / (k - 1) for k groups). With a group a
    row it is the usual standard error.
    """
    found, index = torch.unique(groups, return_inverse=True)
    k = len(found)
    if k < 2:
        return math.inf, k
    sums = torch.zeros(k, dtype=torch.float64).index_add(0, index, residuals.double())
    return float((k / (k - 1) * sums.square().sum()).sqrt()) / len(residuals), k


def mean_interval(values: Tensor, groups: Tensor | None = None) -> tuple[float, Interval | None]:
    """The mean of (n,) values and its 95 % interval by Student's t over the groups (n,), by default a group a row.

    No interval for fewer than two groups or for values that are not finite.
    """
    values = values.double()
    mean = float(values.mean())
    groups = torch.arange(len(values)) if groups is None else groups
    if not torch.isfinite(values).all():
        return mean, None
    error, k = cluster_error(values - mean, groups)
    if k < 2:
        return mean, None
    half = quantile_of_t(k - 1) * error
    return mean, (mean - half, mean + half)


def share_interval(values: Tensor, groups: Tensor | None = None) -> tuple[float, Interval | None]:
    """The mean of (n,) shares in [0, 1] and its 95 % interval, which stays in [0, 1].

    Wilson's score interval (JASA 22, 1927) with the effective number of sources in the place of n: as many independent rows as
    would vary as much (Korn & Graubard, Survey Methodology 24, 1998). No interval for fewer than two groups.
    """
    values = values.double()
    p = float(values.mean())
    groups = torch.arange(len(values)) if groups is None else groups
    error, k = cluster_error(values - p, groups)
    if k < 2 or not torch.isfinite(values).all():
        return p, None
    # All rows alike say nothing about how much they vary: then the sources are what was seen.
    size = p * (1 - p) / error**2 if error > 0 else float(k)
    t = quantile_of_t(k - 1)
    middle = (p + t**2 / (2 * size)) / (1 + t**2 / size)
    half = t / (1 + t**2 / size) * math.sqrt(p * (1 - p) / size + t**2 / (4 * size**2))
    return p, (max(0.0, middle - half), min(1.0, middle + half))


def difference_interval(differences: Tensor, groups: Tensor) -> Interval:
    """95 % of the mean of paired differences (n,) over the groups (n,); `UNKNOWN` with fewer than `LEAST_SOURCES` of them."""
    if count_of(groups) < LEAST_SOURCES:
        return UNKNOWN
    return mean_interval(differences, groups)[1] or UNKNOWN


def bootstrap_interval(
    statistic: Callable[[Tensor], float], groups: Tensor, *, seed: int = 0, draws: int = 400
) -> Interval:
    """95 % of a statistic of rows drawn anew by their groups (n,): for what is no mean of rows, such as a spectrum's distance.

    Percentiles of `statistic(rows)` over `draws` sets of groups drawn with replacement (Efron & Tibshirani, An Introduction to
    the Bootstrap, chapter 13). `UNKNOWN` with fewer than `LEAST_SOURCES` groups.
    """
    found, index = torch.unique(groups, return_inverse=True)
    k = len(found)
    if k < LEAST_SOURCES:
        return UNKNOWN
    members = [torch.nonzero(index == group).flatten() for group in range(k)]
    picks = torch.randint(k, (draws, k), generator=generator(seed, "bootstrap", 0)).tolist()
    values = torch.tensor([statistic(torch.cat([members[i] for i in pick])) for pick in picks], dtype=torch.float64)
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def ratio_interval(
    numerators: Tensor, denominators: Tensor, groups: Tensor | None = None
) -> tuple[float, Interval | None]:
    """sum(numerators) / sum(denominators) over paired rows (n,), and its 95 % interval over the groups (n,).

    Rows count together, so that what both have in common (an easy image, a late timestep) cancels: the interval is that of the
    residuals numerator - ratio * denominator (Cochran, Sampling Techniques, 1977, equation 6.10).
    """
    numerators, denominators = numerators.double(), denominators.double()
    ratio = float(numerators.sum() / denominators.sum())
    groups = torch.arange(len(numerators)) if groups is None else groups
    error, k = cluster_error((numerators - ratio * denominators) / denominators.mean(), groups)
    if k < 2 or not math.isfinite(ratio):
        return ratio, None
    half = quantile_of_t(k - 1) * error
    return ratio, (ratio - half, ratio + half)
