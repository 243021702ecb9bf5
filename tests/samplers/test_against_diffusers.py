"""Whole trajectories against diffusers' schedulers, with one network, one noise and one set of betas."""

import functools
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
from torch import Tensor

from ldmkit import diffusion, samplers
from ldmkit.random import normal, sample_generators

STEPS = (10, 25, 50)
BETAS = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
# numpy 2.4 objects to an array that diffusers hands to torch; the numbers are right.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.algorithm_types dpmsolver:FutureWarning"),
]

OURS = diffusion.make(schedule={"type": "linear", "start": 0.0015, "end": 0.0195})
NOISE = normal(sample_generators(3, 2), (3, 4, 4))
Network = Callable[[Tensor, Tensor], Tensor]


def theirs(
    scheduler: Any, steps: int, toy: Network, *, sigma_space: bool = False, double: bool = False, **step: Any
) -> Tensor:
    """`scheduler`'s trajectory from NOISE; the sigma-space ones hold x / alpha."""
    scheduler.set_timesteps(steps)
    if double:
        scheduler.sigmas = scheduler.sigmas.double()
    x = NOISE.clone()
    if sigma_space:
        x = x * float((scheduler.sigmas[0].double() ** 2 + 1) ** 0.5)
    for t in scheduler.timesteps:
        output = toy(scheduler.scale_model_input(x, t), t.expand(len(x)).double())
        x = scheduler.step(output, t, x, **step).prev_sample.float()
    return x


def assert_same_path(ours: Tensor, expected: Tensor) -> None:
    assert float((ours - expected).abs().max()) < 1e-4 * float(expected.std())


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clean", [True, False])
def test_ddim(toy: Network, steps: int, spacing: str, clean: bool) -> None:
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing=spacing, set_alpha_to_one=clean)
    ours = samplers.ddim(OURS.denoiser(toy), NOISE, OURS.schedule, steps, spacing=spacing, clean=clean)
    assert_same_path(ours, theirs(scheduler, steps, toy))


@pytest.mark.parametrize("steps", STEPS)
def test_compvis_spacing_is_the_released_ddim(toy: Network, steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    ours = samplers.ddim(OURS.denoiser(toy), NOISE, OURS.schedule, steps, spacing="compvis")
    assert_same_path(ours, theirs(scheduler, steps, toy))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise(toy: Network, steps: int, eta: float) -> None:
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="leading")
    expected = theirs(scheduler, steps, toy, eta=eta, generator=sample_generators(0, 2))
    ours = samplers.ddim(
        OURS.denoiser(toy), NOISE, OURS.schedule, steps, eta=eta, spacing="leading", generators=sample_generators(0, 2)
    )
    assert_same_path(ours, expected)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("variance", "theirs_variance"), [(0.0, "fixed_small"), (1.0, "fixed_large")])
def test_ddpm(toy: Network, steps: int, variance: float, theirs_variance: str) -> None:
    scheduler = diffusers.DDPMScheduler(
        **BETAS, clip_sample=False, timestep_spacing="leading", variance_type=theirs_variance
    )
    expected = theirs(scheduler, steps, toy, generator=sample_generators(0, 2))
    ours = samplers.ddpm(
        OURS.denoiser(toy),
        NOISE,
        OURS.schedule,
        steps,
        variance=variance,
        spacing="leading",
        generators=sample_generators(0, 2),
    )
    assert_same_path(ours, expected)


@pytest.mark.parametrize("steps", STEPS)
def test_plms(toy: Network, steps: int) -> None:
    scheduler = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    ours = samplers.plms(OURS.denoiser(toy), NOISE, OURS.schedule, steps, spacing="compvis")
    assert_same_path(ours, theirs(scheduler, steps, toy))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("clean", [True, False])
def test_dpmpp_2m(toy: Network, steps: int, clean: bool) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, timestep_spacing="trailing", final_sigmas_type="zero" if clean else "sigma_min"
    )
    ours = samplers.dpmpp_2m(OURS.denoiser(toy), NOISE, OURS.schedule, steps, spacing="trailing", clean=clean)
    assert_same_path(ours, theirs(scheduler, steps, toy))


@pytest.mark.parametrize("steps", STEPS)
def test_dpmpp_2m_on_karras_sigmas(toy: Network, steps: int) -> None:
    # diffusers evaluates the network at rounded timesteps there; on Euler it does not, and neither do we.
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)
    rounded = lambda x, t: toy(x, t.round())  # noqa: E731
    ours = samplers.dpmpp_2m(_at_exact_level(rounded), NOISE, OURS.schedule, steps, spacing="karras")
    assert_same_path(ours, theirs(scheduler, steps, toy))


def _at_exact_level(network: Network) -> Network:
    """The denoiser of a network that sees rounded timesteps while x stays at the exact level."""
    return lambda x, t: OURS.to_x0(network(x, t), x, t)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_solver(toy: Network, steps: int, order: int) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS,
        timestep_spacing="trailing",
        algorithm_type="dpmsolver",
        solver_order=order,
        final_sigmas_type="sigma_min",
    )
    ours = samplers.dpm_solver(
        OURS.denoiser(toy), NOISE, OURS.schedule, steps, order=order, spacing="trailing", clean=False
    )
    assert_same_path(ours, theirs(scheduler, steps, toy))


@pytest.mark.parametrize("steps", STEPS)
def test_dpmpp_sde(toy: Network, steps: int) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, timestep_spacing="trailing", algorithm_type="sde-dpmsolver++"
    )
    expected = theirs(scheduler, steps, toy, generator=sample_generators(0, 2))
    ours = samplers.dpmpp_sde(
        OURS.denoiser(toy), NOISE, OURS.schedule, steps, spacing="trailing", generators=sample_generators(0, 2)
    )
    assert_same_path(ours, expected)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("clean", [True, False])
def test_dpmpp_2s_paired(toy: Network, steps: int, clean: bool) -> None:
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        **BETAS, lower_order_final=True, final_sigmas_type="zero" if clean else "sigma_min"
    )
    grid = samplers.make_grid(OURS.schedule, steps, clean=clean)
    scheduler.set_timesteps = functools.partial(  # it knows one spacing of its own only, so it is given ours
        lambda set_timesteps, _: set_timesteps(timesteps=[int(t) for t in grid.timesteps]), scheduler.set_timesteps
    )
    ours = samplers.dpmpp_2s(OURS.denoiser(toy), NOISE, OURS.schedule, grid, paired=True)
    assert_same_path(ours, theirs(scheduler, steps, toy))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "karras", "exponential"])
@pytest.mark.parametrize(
    ("name", "cls"), [("euler", diffusers.EulerDiscreteScheduler), ("heun", diffusers.HeunDiscreteScheduler)]
)
def test_euler_and_heun(toy: Network, steps: int, spacing: str, name: str, cls: Any) -> None:
    kind = {f"use_{spacing}_sigmas": True} if spacing in ("karras", "exponential") else {"timestep_spacing": spacing}
    expected = theirs(cls(**BETAS, **kind), steps, toy, sigma_space=True)
    ours = getattr(samplers, name)(OURS.denoiser(toy), NOISE, OURS.schedule, steps, spacing=spacing)
    assert_same_path(ours, expected)


@pytest.mark.parametrize("steps", STEPS)
def test_euler_ancestral(toy: Network, steps: int) -> None:
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    expected = theirs(scheduler, steps, toy, sigma_space=True, generator=sample_generators(0, 2))
    ours = samplers.euler_ancestral(OURS.denoiser(toy), NOISE, OURS.schedule, steps, generators=sample_generators(0, 2))
    assert_same_path(ours, expected)


@pytest.mark.parametrize("steps", STEPS)
def test_lms(toy: Network, steps: int) -> None:
    scheduler = diffusers.LMSDiscreteScheduler(**BETAS, use_karras_sigmas=True)
    expected = theirs(scheduler, steps, toy, sigma_space=True)
    assert_same_path(samplers.lms(OURS.denoiser(toy), NOISE, OURS.schedule, steps, spacing="karras"), expected)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc(toy: Network, steps: int, order: int, variant: str) -> None:
    clean = variant == "bh2"  # diffusers' bh1 answers NaN on a last step to sigma 0
    scheduler = diffusers.UniPCMultistepScheduler(
        **BETAS,
        timestep_spacing="trailing",
        solver_order=order,
        solver_type=variant,
        final_sigmas_type="zero" if clean else "sigma_min",
    )
    ours = samplers.unipc(
        OURS.denoiser(toy), NOISE, OURS.schedule, steps, order=order, variant=variant, spacing="trailing", clean=clean
    )
    assert_same_path(ours, theirs(scheduler, steps, toy))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(toy: Network, steps: int, order: int) -> None:
    scheduler = diffusers.DEISMultistepScheduler(**BETAS, timestep_spacing="trailing", solver_order=order)
    ours = samplers.deis(OURS.denoiser(toy), NOISE, OURS.schedule, steps, order=order, spacing="trailing", clean=False)
    # Its weights are differences of float32 logarithms, 3e-4 off at order 3; from the same sigmas in float64 they agree.
    assert_same_path(ours, theirs(scheduler, steps, toy, double=True))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("name", "cls"),
    [("euler", diffusers.FlowMatchEulerDiscreteScheduler), ("heun", diffusers.FlowMatchHeunDiscreteScheduler)],
)
def test_rectified_flow(toy: Network, steps: int, name: str, cls: Any) -> None:
    flow = diffusion.make(schedule={"type": "flow"}, prediction="flow")
    scheduler = cls()
    scheduler.set_timesteps(steps)
    x = NOISE.clone()
    for t in scheduler.timesteps:  # sigma T, where ours are sigma T - 1
        x = scheduler.step(toy(x, t.expand(len(x)).double() - 1), t, x).prev_sample
    ours = getattr(samplers, name)(flow.denoiser(toy), NOISE, flow.schedule, steps, spacing="linspace")
    assert_same_path(ours, x)


ONE_STEP = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {"final_sigmas_type": "zero"}),
    "plms": (diffusers.PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": True}),
}


@pytest.mark.parametrize(
    ("name", "betas", "prediction"),
    [
        *((name, betas, "eps") for name in ONE_STEP for betas in ("linear", "scaled_linear")),
        # From eps, cosine's first step is a float32 number times 20 000.
        *((name, "squaredcos_cap_v2", "v") for name in ONE_STEP if name != "plms"),
    ],
)
def test_one_step_to_a_millionth(toy: Network, name: str, betas: str, prediction: Any) -> None:
    """The first of 10 steps, in float64 here, from the same betas."""
    cls, options = ONE_STEP[name]
    scheduler = cls(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule=betas,
        timestep_spacing="trailing",
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[prediction],
        **options,
    )
    scheduler.set_timesteps(10)
    process = diffusion.make(
        schedule={"type": "given", "betas": scheduler.betas.double().tolist()}, prediction=prediction
    )
    expected = scheduler.step(
        toy(NOISE, scheduler.timesteps[:1].expand(2).double()), scheduler.timesteps[0], NOISE
    ).prev_sample
    if name == "plms":  # its first step takes two evaluations
        again = toy(expected, scheduler.timesteps[1:2].expand(2).double())
        expected = scheduler.step(again, scheduler.timesteps[1], expected).prev_sample
    seen: list[Tensor] = []
    getattr(samplers, name)(
        process.denoiser(toy),
        NOISE.double(),
        process.schedule,
        10,
        spacing="trailing",
        callback=lambda step, total, x, x0: seen.append(x),
    )
    assert float((seen[0] - expected).abs().max()) < 1e-6 * float(expected.abs().max())
