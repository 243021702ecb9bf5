"""Orders of convergence on a Gaussian mixture whose x_0 is known exactly, and the distribution that comes out."""

import math
from typing import Any

import pytest
import torch

from ldmkit import samplers, schedules
from ldmkit.random import sample_generators
from ldmkit.samplers import Grid

EVERY = (
    *("ddim", "ddpm", "plms", "dpm_solver", "dpmpp_2m", "dpmpp_2s", "dpmpp_sde"),
    *("euler", "euler_ancestral", "heun", "lms", "unipc", "deis"),
)
SCHEDULE = schedules.EDM(sigma_min=0.02, sigma_max=20.0)


def even_in_log_snr(steps: int) -> Grid:
    """From rho 20 to 0.02 in even steps of log-SNR, ending on its last level: where the solvers' orders show."""
    log_snr = torch.linspace(-2 * math.log(20), -2 * math.log(0.02), steps + 1, dtype=torch.float64)
    alpha, sigma = SCHEDULE.coefficients(log_snr)
    return Grid(
        timesteps=tuple(SCHEDULE.timestep(log_snr[:-1]).tolist()),
        alpha=tuple(alpha.tolist()),
        sigma=tuple(sigma.tolist()),
        log_snr=tuple(log_snr.tolist()),
        straight=False,
        scale=1.0,
    )


@pytest.fixture(scope="module")
def start() -> torch.Tensor:
    return torch.randn((1, 1, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def truth(mixture: Any, start: torch.Tensor) -> torch.Tensor:
    exact = mixture(SCHEDULE)
    return samplers.unipc(_exact(exact), start, SCHEDULE, even_in_log_snr(1000), order=3)


def _exact(mixture: Any) -> Any:
    """Timesteps travel as float32; the solvers' errors below want the exact level, so it is found again in float64."""
    return lambda x, t: mixture.at(x, SCHEDULE.log_snr(t).view(-1, 1, 1, 1))


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("ddim", {}, 1),
        ("euler", {}, 1),
        ("heun", {}, 2),
        ("dpm_solver", {"order": 2}, 2),
        ("dpmpp_2m", {}, 2),
        ("dpmpp_2s", {}, 2),
        ("dpmpp_2s", {"paired": True}, 2),
        ("dpmpp_sde", {"eta": 0.0}, 2),
        ("lms", {"order": 2}, 2),
        ("lms", {"order": 3}, 3),
        ("unipc", {"order": 1}, 2),
        ("unipc", {"order": 2}, 3),
        ("deis", {"order": 2}, 2),
    ],
)
def test_order(
    mixture: Any, start: torch.Tensor, truth: torch.Tensor, name: str, options: dict[str, Any], order: int
) -> None:
    errors = []
    for steps in (80, 161, 321):  # odd, so that paired steps keep their order to the end
        found = getattr(samplers, name)(_exact(mixture(SCHEDULE)), start, SCHEDULE, even_in_log_snr(steps), **options)
        errors.append(float((found - truth).abs().mean()))
    measured = math.log2(errors[1] / errors[2])
    assert abs(measured - order) < 0.35, (errors, measured)


@pytest.mark.parametrize("sampler", EVERY)
@pytest.mark.parametrize(
    "schedule",
    [
        schedules.linear(),
        schedules.cosine(),
        schedules.Flow(),
        schedules.EDM(),
        schedules.make("linear", zero_snr=True),
    ],
    ids=["linear", "cosine", "flow", "edm", "zero-snr"],
)
def test_samples_are_distributed_as_the_data(mixture: Any, sampler: str, schedule: schedules.Schedule) -> None:
    data = mixture(schedule)
    noise = torch.randn((2, 1, 64, 64), generator=torch.Generator().manual_seed(2))
    steps = 120 if sampler in ("ddpm", "euler_ancestral") else 60  # their bias is of first order
    found = getattr(samplers, sampler)(data, noise, schedule, steps, generators=sample_generators(0, 2))
    points = torch.linspace(-2, 2, 41, dtype=torch.float64)
    share = (found.double().flatten()[:, None] <= points).double().mean(0)
    # 8192 independent numbers leave 0.006 of deviation; the rest is what the steps leave
    assert float((share - data.cdf(points)).abs().max()) < 0.025


def test_plms_is_of_second_order_on_even_timesteps(mixture: Any, start: torch.Tensor) -> None:
    """What its weights are made for; the noisier part of the path, where even timesteps are no coarse steps in log-SNR."""

    def even(steps: int) -> Grid:
        t = torch.linspace(999, 200, steps + 1, dtype=torch.float64)
        log_snr = SCHEDULE.log_snr(t)
        alpha, sigma = SCHEDULE.coefficients(log_snr)
        levels = (tuple(part.tolist()) for part in (alpha, sigma, log_snr))
        return Grid(tuple(t[:-1].tolist()), *levels, straight=False, scale=1.0)

    exact = _exact(mixture(SCHEDULE))
    truth = samplers.unipc(exact, start, SCHEDULE, even(600), order=3)
    errors = {
        steps: float((samplers.plms(exact, start, SCHEDULE, even(steps)) - truth).abs().mean()) for steps in (40, 80)
    }
    assert abs(math.log2(errors[40] / errors[80]) - 2) < 0.2
    first = float((samplers.ddim(exact, start, SCHEDULE, even(40)) - truth).abs().mean())
    assert errors[40] < 0.05 * first


def test_third_order_beats_second(mixture: Any, start: torch.Tensor, truth: torch.Tensor) -> None:
    """Their first steps are of lower order, so it is not the slope that shows it."""
    for name in ("dpm_solver", "deis"):
        errors = [
            float(
                (
                    getattr(samplers, name)(_exact(mixture(SCHEDULE)), start, SCHEDULE, even_in_log_snr(80), order=k)
                    - truth
                )
                .abs()
                .mean()
            )
            for k in (1, 2, 3)
        ]
        assert errors[2] < 0.5 * errors[1] < 0.1 * errors[0]
