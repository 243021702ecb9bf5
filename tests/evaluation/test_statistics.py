"""Intervals against closed forms, scipy, and how often they cover."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from ldmkit.evaluation.statistics import (
    UNKNOWN,
    bootstrap_interval,
    difference_interval,
    mean_interval,
    ratio_interval,
    share_interval,
)


def test_mean_interval_is_students() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    mean, interval = mean_interval(values)
    expected = stats.ttest_1samp(values.numpy(), 0).confidence_interval(0.95)
    assert mean == 2.5
    assert interval == pytest.approx((expected.low, expected.high))
    assert mean_interval(torch.tensor([1.0])) == (1.0, None)
    assert mean_interval(torch.tensor([1.0, float("inf")]))[1] is None


def test_crops_of_one_image_count_once() -> None:
    """64 crops of each of 5 images that are all alike within an image are 5 numbers, not 320."""
    images = torch.tensor([0.1, 0.4, 0.2, 0.7, 0.3])
    crops, groups = images.repeat_interleave(64), torch.arange(5).repeat_interleave(64)
    assert mean_interval(crops, groups)[1] == pytest.approx(mean_interval(images)[1])
    narrow, wide = mean_interval(crops)[1], mean_interval(crops, groups)[1]
    assert narrow is not None
    assert wide is not None
    assert wide[1] - wide[0] > 5 * (narrow[1] - narrow[0])
    assert mean_interval(crops, torch.zeros(320))[1] is None  # crops of one image say nothing about others


def test_intervals_over_sources_cover_as_often_as_they_say() -> None:
    covered = {"mean": 0, "share": 0, "difference": 0}
    for trial in range(200):
        source = torch.Generator().manual_seed(trial)
        groups = torch.arange(12).repeat_interleave(8)
        common = torch.randn(12, generator=source)[groups]
        values = common + 0.5 * torch.randn(96, generator=source)
        low, high = mean_interval(values, groups)[1] or UNKNOWN
        covered["mean"] += low <= 0 <= high
        low, high = share_interval((values > 0).double(), groups)[1] or UNKNOWN
        covered["share"] += low <= 0.5 <= high
        low, high = difference_interval(0.3 * values, groups)
        covered["difference"] += low <= 0 <= high
    assert all(180 <= count <= 200 for count in covered.values()), covered


@pytest.mark.parametrize("right", [0, 3, 250, 500])
def test_shares_are_wilsons_and_stay_between_nought_and_one(right: int) -> None:
    values = torch.zeros(500)
    values[:right] = 1
    mean, interval = share_interval(values)
    assert interval is not None
    expected = stats.binomtest(right, 500).proportion_ci(method="wilson")
    assert mean == right / 500
    assert interval == pytest.approx(
        (expected.low, expected.high), abs=2e-4
    )  # his z is our t with 499 degrees of freedom
    assert 0 <= interval[0] <= mean <= interval[1] <= 1
    assert interval[0] < interval[1]


def test_all_alike_in_two_sources_says_little() -> None:
    interval = share_interval(torch.ones(128), torch.arange(2).repeat(64))[1]
    assert interval is not None
    assert interval[0] < 0.1
    assert interval[1] == 1


def test_ratio_interval_covers_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(100):
        source = torch.Generator().manual_seed(trial)
        denominators = 1 + torch.rand(80, generator=source)
        numerators = 0.2 * denominators + 0.3 * torch.randn(80, generator=source)
        low, high = ratio_interval(numerators, denominators)[1] or UNKNOWN
        covered += low <= 0.2 <= high
    assert 88 <= covered <= 100


def test_bootstrap_of_a_mean_is_its_interval() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0)).double()
    low, high = bootstrap_interval(lambda rows: float(values[rows].mean()), torch.arange(200), draws=4000)
    expected = mean_interval(values)[1]
    assert expected is not None
    assert (low, high) == pytest.approx(expected, abs=0.02)


def test_no_verdict_with_fewer_than_six_sources() -> None:
    five, six = torch.arange(5), torch.arange(6)
    assert difference_interval(torch.ones(5), five) == UNKNOWN
    assert bootstrap_interval(lambda rows: 1.0, five) == UNKNOWN
    assert difference_interval(torch.ones(6), six) == (1, 1)
    assert math.isinf(difference_interval(torch.full((6,), math.inf), six)[0])
