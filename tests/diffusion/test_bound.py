"""The variational bound against the entropy of data whose denoiser is known."""

import math

import pytest
import torch
from torch import Tensor

from ldmkit import schedules
from ldmkit.diffusion import variational_bound
from ldmkit.errors import UsageError
from ldmkit.random import normal, sample_generators

SCHEDULE = schedules.EDM(sigma_min=0.002, sigma_max=80.0)
STD = 0.5


def denoise(x: Tensor, t: Tensor) -> Tensor:
    """The exact x_0 of pixels that are N(0, STD^2)."""
    alpha, sigma = (float(part[0]) for part in SCHEDULE.alpha_sigma(t))
    return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * x


def test_a_chain_reaches_the_likelihood_of_a_gaussian() -> None:
    """The gap to -log2 p(x_0) is of first order in the chain's steps: halving them twice shows where it goes."""
    x0 = STD * normal(sample_generators(0, 4), (1, 128, 128))
    exact = (0.5 * (x0 / STD) ** 2 + math.log(STD) + 0.5 * math.log(2 * math.pi)).mean() / math.log(2)
    bounds = [
        float(variational_bound(denoise, x0, SCHEDULE, generators=sample_generators(1, 4), steps=steps).total.mean())
        for steps in (250, 500, 1000)
    ]
    gaps = [bound - float(exact) for bound in bounds]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.3)
    assert 2 * bounds[2] - bounds[1] == pytest.approx(float(exact), abs=0.02)


def test_parts_and_a_worse_denoiser() -> None:
    x0 = STD * normal(sample_generators(0, 4), (1, 8, 8))
    right = variational_bound(denoise, x0, SCHEDULE, generators=sample_generators(1, 4), steps=50)
    wrong = variational_bound(
        lambda x, t: 0.8 * denoise(x, t), x0, SCHEDULE, generators=sample_generators(1, 4), steps=50
    )
    assert torch.allclose(right.total, right.prior + right.diffusion + right.reconstruction)
    assert bool((wrong.total > right.total).all())
    # KL of N(alpha x, sigma^2) from N(0, 1) per pixel
    kept = 1 / (1 + 80.0**2)
    expected = 0.5 * (-math.log(1 - kept) - kept + kept * (x0.double() ** 2).flatten(1).mean(1)) / math.log(2)
    assert torch.allclose(right.prior, expected, rtol=1e-3, atol=1e-9)


def test_levels_are_a_distribution() -> None:
    """Two levels, told apart by a denoiser that knows them, leave nothing to say; to one that does not they are one bit."""
    levels = normal(sample_generators(0, 2), (1, 16, 16)).sign()
    known = variational_bound(
        lambda x, t: levels, levels, SCHEDULE, generators=sample_generators(1, 2), steps=20, levels=2
    )
    assert float(known.diffusion.max()) == 0
    assert float(known.reconstruction.max()) < 1e-6

    def posterior(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (float(part[0]) for part in SCHEDULE.alpha_sigma(t))
        return torch.tanh(alpha * x / sigma**2)

    fair = variational_bound(posterior, levels, SCHEDULE, generators=sample_generators(1, 2), levels=2)
    assert float(fair.total.mean()) == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_lie_in_the_schedule(steps: int) -> None:
    with pytest.raises(UsageError, match="1 to 1000"):
        variational_bound(denoise, torch.zeros(1, 1, 2, 2), SCHEDULE, generators=sample_generators(0, 1), steps=steps)
