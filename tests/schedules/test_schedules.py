"""Schedules against diffusers' tables, closed forms and round trips."""

import math
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from ldmkit import schedules
from ldmkit.errors import UsageError

EVERY: list[dict[str, Any]] = [
    {"type": "linear"},
    {"type": "linear", "end": 0.0155},
    {"type": "plain-linear"},
    {"type": "cosine"},
    {"type": "sqrt"},
    {"type": "given", "betas": [0.1, 0.2, 0.3]},
    {"type": "linear", "zero_snr": True},
    {"type": "linear", "shift": 2.0},
    {"type": "linear", "zero_snr": True, "shift": 2.0},
    {"type": "edm"},
    {"type": "edm", "shift": 3.0},
    {"type": "flow"},
    {"type": "flow", "shift": 3.0, "timesteps": 500},
]


@pytest.mark.parametrize("timesteps", [1000, 37])
@pytest.mark.parametrize(
    ("ours", "theirs"), [("linear", "scaled_linear"), ("plain-linear", "linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_betas_are_diffusers(ours: str, theirs: str, timesteps: int) -> None:
    ramp = {} if ours == "cosine" else {"start": 0.0015, "end": 0.0195}
    schedule = schedules.make(ours, timesteps=timesteps, **ramp)
    table = diffusers.DDIMScheduler(
        num_train_timesteps=timesteps, beta_start=0.0015, beta_end=0.0195, beta_schedule=theirs
    )
    assert isinstance(schedule, schedules.Discrete)
    assert float((schedule.betas - table.betas).abs().max()) < 1e-7
    assert float((schedule.alphas_cumprod - table.alphas_cumprod).abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("end", "last", "sigma"), [(0.0195, 1.42e-4, 83.8), (0.0155, 6.69e-4, 38.7), (0.0205, 9.7e-5, 101.6)]
)
def test_terminal_levels_of_the_released_models(end: float, last: float, sigma: float) -> None:
    schedule = schedules.linear(start=0.0015, end=end)
    alpha, noise = schedule.alpha_sigma(torch.tensor(999))
    assert float(schedule.alphas_cumprod[-1]) == pytest.approx(last, rel=0.01)
    assert float(noise / alpha) == pytest.approx(sigma, rel=0.002)


def test_sqrt_by_hand() -> None:
    assert schedules.sqrt(start=0.01, end=0.04, timesteps=3).betas.tolist() == pytest.approx(
        [0.1, math.sqrt(0.025), 0.2]
    )


def test_zero_snr_is_diffusers() -> None:
    schedule = schedules.rescale_zero_snr(schedules.linear())
    expected = rescale_zero_terminal_snr(schedules.linear().betas)
    assert float((schedule.betas - expected).abs().max()) < 1e-12
    assert float(schedule.betas[-1]) == 1
    assert schedule.zero_terminal_snr
    assert not schedules.linear().zero_terminal_snr
    alpha, sigma = schedule.alpha_sigma(torch.tensor([0, 999]))
    assert float(alpha[0]) == pytest.approx(schedules.linear().alpha_sigma(torch.tensor(0))[0])
    assert float(alpha[1]) < 1e-30
    assert float(sigma[1]) == 1


def test_edm_is_karras_table() -> None:
    theirs = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
    theirs.set_timesteps(1000)
    schedule = schedules.EDM(sigma_data=0.5)  # the paper's figures by that alone
    assert (schedule.sigma_min, schedule.sigma_max) == (0.002, 80.0)
    sigma = 0.5 * torch.exp(-schedule.log_snr(torch.arange(1000)) / 2).flip(0)
    assert torch.allclose(sigma.float(), theirs.sigmas[:-1].float(), rtol=1e-5)
    alpha, noise = schedule.alpha_sigma(torch.tensor(999))
    assert float(noise / alpha) == pytest.approx(160, rel=1e-5)


def test_edm_of_data_of_any_deviation_is_one_schedule() -> None:
    """Stated for data twice as wide, everything is twice as large: in the network's coordinates nothing changes."""
    t = torch.arange(1000)
    for deviation in (0.5, 1.0, 3.0):
        assert torch.allclose(schedules.EDM(sigma_data=deviation).log_snr(t), schedules.EDM().log_snr(t), rtol=1e-12)
    # What was saved before sigma_data had a home says its levels for data of deviation 1.
    old = schedules.make("edm", sigma_min=0.002, sigma_max=80.0, rho=7.0, timesteps=1000)
    assert float(torch.exp(-old.log_snr(torch.tensor(999)) / 2)) == pytest.approx(80)
    with pytest.raises(UsageError, match="sigma_data 0"):
        schedules.EDM(sigma_data=0.0)


def test_edm_preconditioning_is_v() -> None:
    """Karras et al. 2022, table 1, at sigma_data 1: c_skip, c_out and c_in are alpha^2, sigma and alpha."""
    rho = torch.tensor(3.0)
    schedule = schedules.EDM()
    alpha, sigma = schedule.alpha_sigma(schedule.timestep(-2 * rho.double().log()))
    assert float(alpha) == pytest.approx(float(1 / torch.sqrt(1 + rho**2)), rel=1e-5)
    assert float(alpha**2) == pytest.approx(float(1 / (1 + rho**2)), rel=1e-5)
    assert float(sigma) == pytest.approx(float(rho / torch.sqrt(1 + rho**2)), rel=1e-5)


def test_flow_is_straight_and_shift_is_sd3s() -> None:
    t = torch.arange(1000)
    alpha, sigma = schedules.Flow().alpha_sigma(t)
    assert torch.allclose(sigma, (t + 1) / 1000, atol=1e-7)
    assert torch.allclose(alpha + sigma, torch.ones(1000), atol=1e-7)
    _, shifted = schedules.make("flow", shift=3.0).alpha_sigma(t)
    assert torch.allclose(shifted, 3 * sigma / (1 + 2 * sigma), atol=1e-6)
    assert torch.allclose(shifted.flip(0), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas, atol=1e-6)


@pytest.mark.parametrize("schedule", [schedules.linear(), schedules.EDM(), schedules.Flow()])
def test_resolution_shift_divides_the_snr_by_its_square(schedule: schedules.Schedule) -> None:
    t = torch.tensor([100.0, 500.0, 900.0])
    lowered = schedules.resolution_shift(schedule, 2.0).log_snr(t)
    assert torch.allclose(lowered, schedule.log_snr(t) - math.log(4), atol=1e-9)


@pytest.mark.parametrize("options", EVERY, ids=str)
def test_every_schedule(options: dict[str, Any]) -> None:
    schedule = schedules.make(**options)
    again = schedules.make(**schedule.config)
    t = torch.linspace(0, schedule.timesteps - 1, 2 * schedule.timesteps - 1, dtype=torch.float64)
    log_snr = schedule.log_snr(t)
    assert torch.equal(again.log_snr(t), log_snr)
    assert bool((log_snr.diff() < 0).all())  # also between whole timesteps
    alpha, sigma = schedule.alpha_sigma(t)
    assert alpha.dtype == sigma.dtype == torch.float32
    power = alpha + sigma if schedule.straight else alpha**2 + sigma**2
    assert torch.allclose(power, torch.ones_like(power), atol=1e-6)
    inside = log_snr > -159
    assert torch.allclose(schedule.timestep(log_snr)[inside], t[inside], atol=1e-6 * schedule.timesteps)
    beyond = schedule.timestep(torch.tensor([-1e3, 1e3]))
    assert beyond.tolist() == [schedule.timesteps - 1, 0]


def test_alpha_sigma_of_a_table_are_the_table() -> None:
    schedule = schedules.linear()
    alpha, sigma = schedule.alpha_sigma(torch.arange(1000))
    assert torch.allclose(alpha, schedule.alphas_cumprod.sqrt().float(), rtol=1e-6)
    assert torch.allclose(sigma, (1 - schedule.alphas_cumprod).sqrt().float(), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "cosin"}, "linear, plain-linear, cosine"),
        ({"type": "linear", "begin": 0.1}, "start, end, timesteps"),
        ({"type": "given"}, "needs betas"),
        ({"type": "given", "betas": [0.1, 1.0, 0.1]}, "only the last"),
        ({"type": "given", "betas": []}, "at least 1"),
        ({"type": "given", "betas": [0.0, 0.1]}, r"\(0, 1\)"),
        ({"type": "linear", "timesteps": 0}, "at least 1"),
        ({"type": "linear", "shift": 0.0}, "above 0"),
        ({"type": "edm", "sigma_min": 200.0}, "sigma_min < sigma_max"),
        ({"type": "flow", "zero_snr": True}, "has none"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        schedules.make(**options)


@pytest.mark.parametrize("t", [-1, 1000, 1000.5])
def test_timesteps_outside_are_refused(t: float) -> None:
    with pytest.raises(UsageError, match=r"\[0, 1000\)"):
        schedules.linear().alpha_sigma(torch.tensor([t]))


def test_an_odd_ramp_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\(0, 1\)"):
        schedules.linear(start=-0.1)
