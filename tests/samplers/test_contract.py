"""What holds for every sampler: rows, counts, errors, callbacks, and how the timesteps are spaced."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ldmkit import diffusion, samplers, schedules
from ldmkit.errors import DivergedError, UsageError
from ldmkit.random import normal, sample_generators
from ldmkit.samplers import make_grid

DETERMINISTIC = ("ddim", "plms", "dpm_solver", "dpmpp_2m", "dpmpp_2s", "euler", "heun", "lms", "unipc", "deis")
NOISY: dict[str, dict[str, Any]] = {
    "ddim": {"eta": 1.0},
    "ddpm": {},
    "dpmpp_2s": {"eta": 1.0},
    "dpmpp_sde": {},
    "euler": {"s_churn": 5.0},
    "euler_ancestral": {},
    "heun": {"s_churn": 5.0},
}
EVERY = [(name, {}) for name in DETERMINISTIC] + list(NOISY.items())
SPACINGS = ("trailing", "leading", "linspace", "quadratic", "karras", "exponential")
PROCESS = diffusion.make(schedule={"type": "linear", "end": 0.0155})
Network = Callable[[Tensor, Tensor], Tensor]


OUT_OF_RANGE = [
    ("ddim", "eta", -1.0),
    ("ddim", "eta", 2),
    ("ddim", "temperature", float("nan")),
    ("tcd", "eta", 1.5),
    ("ddpm", "variance", -0.1),
    ("euler", "s_churn", -1.0),
    ("lms", "order", 5),
    ("deis", "order", 0),
    ("unipc", "order", 2.5),
    ("dpm_solver", "order", 4),
]


@pytest.mark.parametrize(("name", "option", "value"), OUT_OF_RANGE)
def test_a_direct_call_refuses_an_option_out_of_its_range(toy: Network, name: str, option: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"option {option} of {name} is {value}"):
        getattr(samplers, name)(toy, torch.zeros(1, 3, 4, 4), PROCESS.schedule, 5, **{option: value})


@pytest.mark.parametrize(("name", "options"), EVERY, ids=lambda value: str(value))
def test_a_row_does_not_depend_on_its_batch(toy: Network, name: str, options: dict[str, Any]) -> None:
    sampler, denoiser = getattr(samplers, name), PROCESS.denoiser(toy)
    noise = normal(sample_generators(0, 8, "noise"), (3, 8, 8))
    together = sampler(denoiser, noise, PROCESS.schedule, 10, generators=sample_generators(0, 8), **options)
    alone = [
        sampler(denoiser, noise[i : i + 1], PROCESS.schedule, 10, generators=sample_generators(i, 1), **options)
        for i in range(8)
    ]
    assert float((together - torch.cat(alone)).abs().max()) < 1e-5 * float(together.std())


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_no_generators_are_needed_without_noise(toy: Network, name: str) -> None:
    noise = normal(sample_generators(0, 2), (3, 4, 4))
    first, second = (getattr(samplers, name)(PROCESS.denoiser(toy), noise, PROCESS.schedule, 5) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("name", "options"), NOISY.items(), ids=lambda value: str(value))
def test_noise_without_a_generator_a_row_is_an_error(toy: Network, name: str, options: dict[str, Any]) -> None:
    for generators in (None, sample_generators(0, 1)):
        with pytest.raises(UsageError, match="one generator a row, 2 of them"):
            getattr(samplers, name)(
                PROCESS.denoiser(toy),
                torch.zeros(2, 3, 4, 4),
                PROCESS.schedule,
                5,
                generators=generators,
                **options,
            )


@pytest.mark.parametrize(("name", "options"), EVERY, ids=lambda value: str(value))
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_as_many_steps_as_asked_are_taken_and_shown(
    toy: Network, name: str, options: dict[str, Any], steps: int
) -> None:
    seen: list[tuple[int, int]] = []
    shown: list[Tensor] = []

    def callback(step: int, total: int, x: Tensor, x0: Tensor) -> None:
        seen.append((step, total))
        shown.append(x)

    noise = normal(sample_generators(0, 2), (3, 4, 4))
    result = getattr(samplers, name)(
        PROCESS.denoiser(toy),
        noise,
        PROCESS.schedule,
        steps,
        generators=sample_generators(0, 2),
        callback=callback,
        **options,
    )
    assert seen == [(i + 1, steps) for i in range(steps)]
    assert torch.equal(shown[-1], result)


@pytest.mark.parametrize(("name", "options"), EVERY, ids=lambda value: str(value))
def test_impossible_steps_and_numbers(toy: Network, name: str, options: dict[str, Any]) -> None:
    sampler, noise = getattr(samplers, name), torch.zeros(1, 3, 4, 4)
    for steps in (0, -3, 1001):
        with pytest.raises(UsageError, match="1 to 1000"):
            sampler(PROCESS.denoiser(toy), noise, PROCESS.schedule, steps, **options)

    def broken(x: Tensor, t: Tensor) -> Tensor:
        return x / (t > 700).float().view(-1, 1, 1, 1)

    options = {**options, "generators": sample_generators(0, 1)}
    timestep = r"[\d.]+" if "s_churn" in options else "499"
    with pytest.raises(DivergedError, match=f"timestep {timestep} is not finite"):
        sampler(broken, noise + 1, PROCESS.schedule, make_grid(PROCESS.schedule, 2), **options)


def test_a_denoiser_that_answers_another_shape() -> None:
    with pytest.raises(UsageError, match="both must be the same"):
        samplers.ddim(lambda x, t: x[:, :1], torch.zeros(1, 3, 4, 4), PROCESS.schedule, 2)


def test_ancestral_euler_is_ddim_with_its_eta(toy: Network) -> None:
    noise = normal(sample_generators(0, 2), (3, 4, 4)).double()
    for schedule in ("linear", "flow"):
        process = diffusion.make(schedule={"type": schedule}, prediction="flow")
        for eta in (0.0, 0.3, 1.0):
            ours, same = (
                sampler(process.denoiser(toy), noise, process.schedule, 20, eta=eta, generators=sample_generators(0, 2))
                for sampler in (samplers.euler_ancestral, samplers.ddim)
            )
            assert torch.allclose(ours, same, atol=1e-9)
    ancestral = samplers.ddpm(process.denoiser(toy), noise, process.schedule, 20, generators=sample_generators(0, 2))
    assert torch.allclose(ancestral, same, atol=1e-9)


def test_sde_without_noise_is_2m(toy: Network) -> None:
    noise = normal(sample_generators(0, 2), (3, 4, 4)).double()
    plain = samplers.dpmpp_2m(PROCESS.denoiser(toy), noise, PROCESS.schedule, 20)
    assert torch.allclose(samplers.dpmpp_sde(PROCESS.denoiser(toy), noise, PROCESS.schedule, 20, eta=0.0), plain)


def test_half_precision_latents_are_carried_in_single(toy: Network) -> None:
    noise = normal(sample_generators(0, 1), (3, 4, 4)).half()
    result = samplers.dpmpp_2m(PROCESS.denoiser(toy), noise, PROCESS.schedule, 5)
    assert result.dtype == torch.float32


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", [schedules.linear(), schedules.Flow(), schedules.EDM(), schedules.cosine()])
def test_every_spacing_takes_every_number_of_steps(spacing: Any, schedule: schedules.Schedule) -> None:
    for steps in (1, 2, 3, 7, 50, 300, 333, 999, 1000):
        grid = make_grid(schedule, steps, spacing)
        t = torch.tensor(grid.timesteps)
        assert len(grid) == steps
        assert bool((t[:-1] > t[1:]).all())
        assert float(t.min()) >= 0
        assert float(t.max()) <= 999
        if spacing != "leading":
            assert float(t[0]) == 999
        if schedule.discrete and spacing not in ("karras", "exponential"):
            assert torch.equal(t, t.round())


def test_spacings_by_hand() -> None:
    def timesteps(spacing: Any, steps: int) -> list[float]:
        return list(make_grid(schedules.linear(), steps, spacing).timesteps)

    assert timesteps("trailing", 5) == [999, 799, 599, 399, 199]
    assert timesteps("leading", 5) == [800, 600, 400, 200, 0]
    assert timesteps("linspace", 4) == [999, 666, 333, 0]
    assert timesteps("quadratic", 4) == [999, 562, 249, 62]  # 1000 (1, 3/4, 1/2, 1/4)^2 - 1, rounded half to even
    rho = [make_grid(schedules.linear(), 10, "karras").rho(i) ** (1 / 7) for i in range(10)]
    assert torch.tensor(rho).diff().std() < 1e-6
    logs = [make_grid(schedules.linear(), 10, "exponential").lam(i) for i in range(10)]
    assert torch.tensor(logs).diff().std() < 1e-5


@pytest.mark.parametrize(("asked", "taken"), [(1, 1), (10, 10), (50, 50), (200, 200), (7, 8), (30, 31)])
def test_compvis_steps(caplog: pytest.LogCaptureFixture, asked: int, taken: int) -> None:
    stride = 1000 // asked
    with caplog.at_level(logging.WARNING, "ldmkit"):
        if list(range(1, 1001, stride))[-1] > 999:
            with pytest.raises(UsageError, match="1000"):
                make_grid(schedules.linear(), asked, "compvis")
            return
        grid = make_grid(schedules.linear(), asked, "compvis")
    assert list(grid.timesteps) == list(range(1, 1001, stride))[::-1]
    assert len(grid) == taken
    assert ("takes" in caplog.text) == (asked != taken)
    first = schedules.linear().alphas_cumprod[0].item()
    assert abs(grid.alpha[-1] ** 2 - first) < 1e-12


@pytest.mark.parametrize(("asked", "taken"), [(10, 10), (20, 20), (50, 49), (100, 96)])
def test_compvis_quadratic_steps(caplog: pytest.LogCaptureFixture, asked: int, taken: int) -> None:
    """The original: ((linspace(0, sqrt(0.8 T), n)) ** 2).astype(int) + 1; of 50 steps 49 are different, the last at 801."""
    with caplog.at_level(logging.WARNING, "ldmkit"):
        grid = make_grid(schedules.linear(), asked, "compvis-quadratic")
    theirs = ((np.linspace(0, np.sqrt(1000 * 0.8), asked)) ** 2).astype(int) + 1
    assert list(grid.timesteps) == sorted({float(t) for t in theirs}, reverse=True)
    assert (len(grid), grid.timesteps[0]) == (taken, 801)
    assert ("takes" in caplog.text) == (asked != taken)
    assert not grid.clean


def test_compvis_quadratic_is_the_original_with_its_repeated_step(toy: Network) -> None:
    """Its own DDIM by hand, step for step: where a timestep comes twice, the step in between changes nothing."""
    kept = schedules.linear(end=0.0155).alphas_cumprod
    t = torch.from_numpy(((np.linspace(0, np.sqrt(1000 * 0.8), 50)) ** 2).astype(int) + 1)
    before = torch.cat([kept[:1], kept[t[:-1]]])
    x = noise = normal(sample_generators(0, 2), (3, 4, 4)).double()
    for i in range(49, -1, -1):
        eps = toy(x, t[i].expand(2))
        clean = (x - (1 - kept[t[i]]).sqrt() * eps) / kept[t[i]].sqrt()
        x = before[i].sqrt() * clean + (1 - before[i]).sqrt() * eps
    # The original starts from unit noise at a level where sigma is a little less than 1.
    ours = samplers.ddim(PROCESS.denoiser(toy), noise, PROCESS.schedule, 50, spacing="compvis-quadratic")
    assert torch.allclose(ours, x, atol=1e-6)


@pytest.mark.parametrize("asked", [300, 501, 700, 1000])
def test_compvis_refuses_where_the_original_crashes(asked: int) -> None:
    with pytest.raises(UsageError, match="reaches timestep 1000"):
        make_grid(schedules.linear(), asked, "compvis")


def test_an_unknown_spacing_is_named() -> None:
    with pytest.raises(UsageError, match="trailing, leading, linspace"):
        make_grid(schedules.linear(), 10, "even")  # type: ignore[arg-type]


def test_twenty_steps_of_2m_beat_fifty_of_ddim(mixture: Any) -> None:
    data = mixture(PROCESS.schedule)
    noise = torch.randn((1, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = samplers.unipc(data, noise, PROCESS.schedule, 300)
    errors = {
        name: float((getattr(samplers, name)(data, noise, PROCESS.schedule, steps) - truth).abs().mean())
        for name, steps in (("ddim", 50), ("dpmpp_2m", 20))
    }
    assert errors["dpmpp_2m"] < 0.3 * errors["ddim"]
