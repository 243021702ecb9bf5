"""Every sampler on every spacing, schedule and prediction with an exact denoiser: finite, the right count of steps, converging.

The data are N(0.3, 0.5^2), for which the probability-flow equation has a closed form:
x_t = alpha m + sqrt(alpha^2 s^2 + sigma^2) z with the same z at every t.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ldmkit import diffusion, samplers, schedules
from ldmkit.random import sample_generators
from ldmkit.samplers import Grid
from ldmkit.samplers.spacing import reach

MEAN, STD = 0.3, 0.5
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear"},
    "plain-linear": {"type": "plain-linear"},
    "cosine": {"type": "cosine"},
    "sqrt": {"type": "sqrt"},
    "flow": {"type": "flow"},
    "edm": {"type": "edm"},
    "zero-snr": {"type": "linear", "zero_snr": True},
    "shifted": {"type": "flow", "shift": 3.0},
}
DETERMINISTIC: list[tuple[str, dict[str, Any]]] = [
    *(
        (name, {})
        for name in ("ddim", "euler", "plms", "dpm_solver", "dpmpp_2m", "dpmpp_2s", "heun", "lms", "unipc", "deis")
    ),
    ("plms", {"runge_kutta": True}),
    ("plms", {"extrapolate": "v"}),
    ("dpmpp_2s", {"paired": True}),
    ("dpm_solver", {"order": 3}),
]
NOISY: list[tuple[str, dict[str, Any]]] = [
    ("ddpm", {}),
    ("ddpm", {"variance": 1.0}),
    ("ddim", {"eta": 1.0}),
    ("euler_ancestral", {}),
    ("dpmpp_sde", {}),
    ("dpmpp_2s", {"eta": 1.0}),
    ("euler", {"s_churn": 5.0}),
    ("heun", {"s_churn": 5.0}),
]
SPACINGS: list[Any] = [
    *("trailing", "leading", "linspace", "quadratic", "karras", "exponential"),
    {"type": "linspace", "drop_last": True},
    {"type": "leading", "offset": 1, "drop_last": True},
]
NOISE = torch.randn((1, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Exact:
    """E[x_0 | x_t] of N(0.3, 0.5^2)."""

    def __init__(self, schedule: schedules.Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (part.view(-1, 1, 1, 1) for part in self.schedule.coefficients(self.schedule.log_snr(t)))
        return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


def answer(grid: Grid) -> Tensor:
    """Where the exact path from NOISE at the grid's first level ends: its last level, or the x_0 expected there if clean."""
    z = (NOISE * grid.scale - grid.alpha[0] * MEAN) / math.hypot(grid.alpha[0] * STD, grid.sigma[0])
    last = -2 if grid.clean else -1
    alpha, sigma = grid.alpha[last], grid.sigma[last]
    spread = math.hypot(alpha * STD, sigma)
    return MEAN + alpha * STD**2 / spread * z if grid.clean else alpha * MEAN + spread * z


@pytest.mark.parametrize("name", SCHEDULES)
def test_finite_and_the_right_count(name: str) -> None:
    """The predictions take turns, so that every sampler and every spacing meets each of them."""
    # Where x is noise alone, eps says nothing of x_0.
    predictions = ["v", "x0", "flow"] if name in ("zero-snr", "flow", "shifted") else ["eps", "v", "x0", "flow"]
    processes = [diffusion.make(schedule=SCHEDULES[name], prediction=prediction) for prediction in predictions]
    for turn, (sampler, options) in enumerate((*DETERMINISTIC, *NOISY)):
        for place, spacing in enumerate(SPACINGS):
            process = processes[(turn + place) % len(processes)]
            for steps in (1, 2, 3, 7):
                what = (sampler, options, spacing, process.prediction.name, steps)
                _check(process, sampler, {**options, "spacing": spacing}, steps, what)


def _check(process: diffusion.Diffusion, sampler: str, options: dict[str, Any], steps: int, what: Any) -> None:
    exact, seen = Exact(process.schedule), []
    found = getattr(samplers, sampler)(
        process.denoiser(lambda x, t: process.from_x0(exact(x, t), x, t)),
        NOISE,
        process.schedule,
        steps,
        generators=sample_generators(0, 1),
        callback=lambda done, total, x, x0: seen.append(total),
        **options,
    )
    assert seen == [steps] * steps, what
    # Heun and PLMS weigh the slope at the end of one huge step as much as that at its beginning: off by half of rho.
    bound = 1000.0 if sampler in ("heun", "plms") and steps <= 3 else 6.0
    assert float(found.abs().max()) < bound, (*what, float(found.abs().max()))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("sampler", "options"), DETERMINISTIC, ids=str)
def test_converges_to_the_exact_answer(name: str, sampler: str, options: dict[str, Any]) -> None:
    """With its own default spacing. Of first order are ddim and euler: their error falls as 1 / n, the others' faster."""
    schedule = schedules.make(**SCHEDULES[name])
    spacing: Any = "trailing" if sampler in ("ddim", "euler") else "quadratic"
    errors = []
    for steps in (15, 60, 240):
        found = getattr(samplers, sampler)(Exact(schedule), NOISE, schedule, steps, **options)
        errors.append(float((found - answer(samplers.make_grid(schedule, steps, spacing))).abs().max()))
    # Whole timesteps cannot be refined: the steps from 3 to 0 halve sigma each on `linear`, and `sqrt` begins at sigma 0.1.
    whole = 0.06 if name == "sqrt" else 0.01
    first_order = (
        spacing == "trailing" or "extrapolate" in options
    )  # v changes with t, so that the step along it is of first order
    assert errors[2] < (0.06 if first_order else whole if schedule.discrete else 2.5e-3), errors
    assert errors[2] < max(errors[0], whole if schedule.discrete else 0.0), errors


def test_a_schedule_of_mostly_noise_is_sampled_where_something_is_seen() -> None:
    sqrt = schedules.make("sqrt")
    grid = samplers.make_grid(sqrt, 20)
    assert 4096 <= grid.rho(0) < 8192
    assert reach(sqrt, 20) == grid.timesteps[0] + 1
    assert samplers.make_grid(sqrt, 1000).timesteps[0] == 999
    for name in ("linear", "plain-linear", "cosine", "flow", "edm", "zero-snr", "shifted"):
        assert reach(schedules.make(**SCHEDULES[name]), 20) == 1000
