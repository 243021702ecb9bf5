"""Every spacing of diffusers' schedulers, also for counts that do not divide T, against whole trajectories of theirs."""

import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ldmkit import diffusion, samplers
from ldmkit.errors import UsageError
from ldmkit.random import normal, sample_generators

STEPS = (1, 2, 3, 7, 16, 27, 30, 50, 60, 300, 700)
BETAS = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
# numpy 2.4 objects to an array that diffusers hands to torch; the numbers are right.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.algorithm_types dpmsolver:FutureWarning"),
]
OURS = diffusion.make(schedule={"type": "linear", "start": 0.0015, "end": 0.0195})
NOISE = normal(sample_generators(3, 2), (3, 4, 4))
Network = Callable[[Tensor, Tensor], Tensor]


def theirs(scheduler: Any, steps: int, network: Network, **step: Any) -> Tensor:
    """`scheduler`'s trajectory from NOISE."""
    scheduler.set_timesteps(steps)
    x = NOISE * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t.expand(len(x)).double())
        x = scheduler.step(output, t, x, **step).prev_sample.float()
    return x


def sigma_space(scheduler: Any, steps: int, network: Network, **step: Any) -> Tensor:
    """The same for the schedulers that hold x / alpha, begun at the variance that ours begins with."""
    scheduler.set_timesteps(steps)
    x = NOISE * float((scheduler.sigmas[0].double() ** 2 + 1) ** 0.5)
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t.expand(len(x)).double())
        x = scheduler.step(output, t, x, **step).prev_sample.float()
    return x


def assert_same_path(ours: Tensor, expected: Tensor, within: float = 1e-4) -> None:
    assert bool(torch.isfinite(expected).all())
    assert float((ours - expected).abs().max()) < within * float(expected.std())


def strided(kind: str, offset: int) -> dict[str, Any]:
    return {"type": kind, "whole_strides": True, **({"offset": offset} if kind == "leading" else {})}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize(
    ("kind", "offset"), [("leading", 0), ("leading", 1), ("leading", 5), ("trailing", 0), ("linspace", 0)]
)
def test_ddim(toy: Network, steps: int, clean: bool, kind: str, offset: int) -> None:
    if steps == 1 and kind == "linspace":
        return  # theirs is timestep 0 alone
    scheduler = diffusers.DDIMScheduler(
        **BETAS, clip_sample=False, timestep_spacing=kind, steps_offset=offset, set_alpha_to_one=clean
    )
    ours = samplers.ddim(OURS.denoiser(toy), NOISE, OURS.schedule, steps, spacing=strided(kind, offset), clean=clean)
    assert_same_path(ours, theirs(scheduler, steps, toy))


@pytest.mark.parametrize("steps", [7, 20, 27, 30, 36, 50, 300])
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("runge_kutta", [False, True])
@pytest.mark.parametrize(("kind", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)])
def test_pndm(toy: Network, steps: int, prediction: Any, runge_kutta: bool, kind: str, offset: int) -> None:
    scheduler = diffusers.PNDMScheduler(
        **BETAS,
        skip_prk_steps=not runge_kutta,
        timestep_spacing=kind,
        steps_offset=offset,
        set_alpha_to_one=False,
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[prediction],
    )
    process = diffusion.make(schedule=OURS.schedule.config, prediction=prediction)
    ours = samplers.plms(
        process.denoiser(toy),
        NOISE,
        process.schedule,
        steps,
        runge_kutta=runge_kutta,
        extrapolate=prediction,
        spacing=strided(kind, offset),
        clean=False,
    )
    # From a step that ends above where the next begins, x_0 divides by the smaller alpha: float32 on their side.
    assert_same_path(ours, theirs(scheduler, steps, toy), 3e-4)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddpm(toy: Network, steps: int, spacing: Any) -> None:
    if steps == 1 and spacing == "linspace":
        return  # theirs is timestep 0 alone
    scheduler = diffusers.DDPMScheduler(**BETAS, clip_sample=False, timestep_spacing=spacing)
    expected = theirs(scheduler, steps, toy, generator=sample_generators(0, 2))
    ours = samplers.ddpm(
        OURS.denoiser(toy), NOISE, OURS.schedule, steps, spacing=spacing, generators=sample_generators(0, 2)
    )
    assert_same_path(ours, expected)


@pytest.mark.parametrize("steps", [2, 3, 7, 16, 27, 30, 50, 300])
@pytest.mark.parametrize(
    ("theirs_spacing", "spacing"),
    [
        ({"timestep_spacing": "leading", "steps_offset": 1}, {"type": "leading", "offset": 1}),
        ({"timestep_spacing": "trailing"}, "trailing"),
        ({"timestep_spacing": "linspace"}, {"type": "linspace", "fractional": True}),
        (
            {"timestep_spacing": "leading", "steps_offset": 1, "use_karras_sigmas": True},
            {"type": "karras", "within": {"type": "leading", "offset": 1}},
        ),
        ({"timestep_spacing": "linspace", "use_exponential_sigmas": True}, "exponential"),
    ],
    ids=["leading", "trailing", "linspace", "karras-leading", "exponential"],
)
def test_euler_and_heun(toy: Network, steps: int, theirs_spacing: Any, spacing: Any) -> None:
    for name, cls in (("euler", diffusers.EulerDiscreteScheduler), ("heun", diffusers.HeunDiscreteScheduler)):
        if name == "heun" and "use_karras_sigmas" in theirs_spacing:
            continue  # it rounds Karras' timesteps
        scheduler = cls(**BETAS, **theirs_spacing)
        ours = getattr(samplers, name)(OURS.denoiser(toy), NOISE, OURS.schedule, steps, spacing=spacing)
        # Between whole timesteps they interpolate sigma, and ours its logarithm.
        assert_same_path(ours, sigma_space(scheduler, steps, toy), 2e-3 if "fractional" in str(spacing) else 1e-4)


DPM = {
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {"solver_order": 2}, {}),
    "dpm_solver": (
        diffusers.DPMSolverMultistepScheduler,
        {"solver_order": 3, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {"order": 3, "clean": False},
    ),
    "unipc": (diffusers.UniPCMultistepScheduler, {"final_sigmas_type": "sigma_min"}, {"clean": False}),
    "deis": (diffusers.DEISMultistepScheduler, {"solver_order": 2}, {"order": 2, "clean": False}),
}


@pytest.mark.parametrize("name", DPM)
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("steps", [2, 3, 7, 14, 16, 27, 30, 50])
@pytest.mark.parametrize(
    ("theirs_spacing", "spacing"),
    [
        ({"timestep_spacing": "leading", "steps_offset": 1}, {"type": "leading", "offset": 1, "drop_last": True}),
        ({"timestep_spacing": "linspace"}, {"type": "linspace", "drop_last": True}),
        ({"timestep_spacing": "trailing"}, "trailing"),
    ],
    ids=["leading", "linspace", "trailing"],
)
def test_dpm_family(toy: Network, name: str, lower: bool, steps: int, theirs_spacing: Any, spacing: Any) -> None:
    cls, own, options = DPM[name]
    scheduler = cls(**BETAS, **own, **theirs_spacing, lower_order_final=lower)
    ours = getattr(samplers, name)(
        OURS.denoiser(toy), NOISE, OURS.schedule, steps, spacing=spacing, lower_order_final=lower, **options
    )
    # DEIS' weights are differences of float32 logarithms there.
    assert_same_path(ours, theirs(scheduler, steps, toy), 1e-3 if name == "deis" else 2e-4)


@pytest.mark.parametrize("steps", [2, 7, 10, 16, 30])
def test_single_steps_with_a_last_pair(toy: Network, steps: int) -> None:
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        **BETAS, lower_order_final=steps % 2 == 1, final_sigmas_type="sigma_min"
    )
    ours = samplers.dpmpp_2s(
        OURS.denoiser(toy),
        NOISE,
        OURS.schedule,
        steps,
        paired=True,
        lower_order_final=False,
        spacing={"type": "linspace", "drop_last": True},
        clean=False,
    )
    assert_same_path(ours, theirs(scheduler, steps, toy), 2e-4)


def test_levels_of_karras_given() -> None:
    spacing = {"type": "karras", "sigma_min": 0.1, "sigma_max": 10.0, "rho": 5.0}
    grid = samplers.make_grid(OURS.schedule, 9, spacing)
    ramp = torch.linspace(10.0**0.2, 0.1**0.2, 9, dtype=torch.float64) ** 5
    assert torch.allclose(torch.tensor([grid.rho(i) for i in range(9)], dtype=torch.float64), ramp)
    with pytest.raises(UsageError, match=r"goes from 0\.0387\d* to \d"):
        samplers.make_grid(OURS.schedule, 9, {"type": "karras", "sigma_max": 500.0})
    with pytest.raises(UsageError, match="sigma_min is above sigma_max"):
        samplers.make_grid(OURS.schedule, 9, {"type": "exponential", "sigma_min": 2.0, "sigma_max": 1.0})


def test_lists_of_timesteps_and_sigmas(toy: Network) -> None:
    listed = [999, 600, 300, 20]
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS)
    set_timesteps = scheduler.set_timesteps
    scheduler.set_timesteps = lambda _: set_timesteps(timesteps=listed)
    expected = sigma_space(scheduler, 4, toy)
    given = {"type": "given", "timesteps": listed}
    ours = samplers.euler(OURS.denoiser(toy), NOISE, OURS.schedule, 4, spacing=given)
    assert_same_path(ours, expected)
    sigmas = [float(sigma) for sigma in scheduler.sigmas]  # the last is 0
    again = samplers.euler(OURS.denoiser(toy), NOISE, OURS.schedule, 4, spacing={"type": "given", "sigmas": sigmas})
    assert_same_path(again, expected)
    with pytest.raises(UsageError, match="lists 4"):
        samplers.make_grid(OURS.schedule, 5, given)
    for wrong in (
        {"timesteps": [1, 2]},
        {"timesteps": []},
        {},
        {"timesteps": [3], "sigmas": [1.0]},
        {"sigmas": [1, -1]},
    ):
        with pytest.raises(UsageError, match="spacing given"):
            samplers.make_grid(OURS.schedule, 2, {"type": "given", **wrong})
    with pytest.raises(UsageError, match=r"lie in \[0, 1000\)"):
        samplers.make_grid(OURS.schedule, 1, {"type": "given", "timesteps": [1000]})


def test_on_a_flow_sigmas_are_its_own(toy: Network) -> None:
    flow = diffusion.make(schedule={"type": "flow"}, prediction="flow")
    grid = samplers.make_grid(flow.schedule, 3, {"type": "given", "sigmas": [1.0, 0.6, 0.2, 0.0]})
    assert torch.allclose(torch.tensor(grid.sigma), torch.tensor([1.0, 0.6, 0.2, 0.0]))


def test_what_goes_beyond_the_schedule_is_refused() -> None:
    with pytest.raises(UsageError, match="reach timestep 1000"):
        samplers.make_grid(OURS.schedule, 1000, {"type": "leading", "offset": 1})
    with pytest.raises(UsageError, match="offset -1"):
        samplers.make_grid(OURS.schedule, 10, {"type": "leading", "offset": -1})
    with pytest.raises(UsageError, match="no option rho; it has"):
        samplers.make_grid(OURS.schedule, 10, {"type": "leading", "rho": 7})


def test_only_ddim_and_plms_take_whole_strides(toy: Network) -> None:
    for name in ("euler", "dpmpp_2m", "unipc", "ddim", "plms"):
        kinds: list[Any] = ["trailing", strided("trailing", 0)]
        plain, whole = (getattr(samplers, name)(OURS.denoiser(toy), NOISE, OURS.schedule, 7, spacing=s) for s in kinds)
        assert torch.equal(plain, whole) == (name not in ("ddim", "plms"))


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 8, 50])
@pytest.mark.parametrize("original", [50, 30])
def test_lcm(toy: Network, steps: int, original: int) -> None:
    if steps > original:
        return
    scheduler = diffusers.LCMScheduler(**BETAS, original_inference_steps=original)
    torch_generators = sample_generators(0, 2)
    expected = theirs(scheduler, steps, toy, generator=torch_generators)
    ours = samplers.lcm(
        OURS.denoiser(toy),
        NOISE,
        OURS.schedule,
        steps,
        original_steps=original,
        generators=sample_generators(0, 2),
    )
    assert_same_path(ours, expected)


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 8, 50])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd(toy: Network, steps: int, eta: float) -> None:
    scheduler = diffusers.TCDScheduler(**BETAS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs(scheduler, steps, toy, eta=eta, generator=sample_generators(0, 2))
    ours = samplers.tcd(OURS.denoiser(toy), NOISE, OURS.schedule, steps, eta=eta, generators=sample_generators(0, 2))
    assert_same_path(ours, expected)


BOUNDS: list[tuple[dict[str, Any], Any]] = [
    ({"clip_sample": True}, True),
    ({"clip_sample": True, "clip_sample_range": 0.7}, 0.7),
    ({"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}, {"quantile": 0.9, "max": 1.5}),
]


@pytest.mark.parametrize(("given", "clip"), BOUNDS, ids=["clip", "range", "thresholding"])
def test_clipping(toy: Network, given: dict[str, Any], clip: Any) -> None:
    kept = {"clip_sample": False, **given}
    free = samplers.ddim(OURS.denoiser(toy), NOISE, OURS.schedule, 20, spacing="leading")
    assert float(free.abs().max()) > 1.5  # otherwise nothing would be clipped
    bounded = samplers.clipped(OURS.denoiser(toy), clip)
    for eta in (0.0, 1.0):
        for clipped_eps in (True, False):
            expected = theirs(
                diffusers.DDIMScheduler(**BETAS, **kept),
                20,
                toy,
                eta=eta,
                use_clipped_model_output=clipped_eps,
                generator=sample_generators(0, 2),
            )
            ours = samplers.ddim(
                bounded,
                NOISE,
                OURS.schedule,
                20,
                eta=eta,
                clipped_eps=clipped_eps,
                spacing="leading",
                generators=sample_generators(0, 2),
            )
            assert_same_path(ours, expected)
    expected = theirs(diffusers.DDPMScheduler(**BETAS, **kept), 20, toy, generator=sample_generators(0, 2))
    ours = samplers.ddpm(bounded, NOISE, OURS.schedule, 20, spacing="leading", generators=sample_generators(0, 2))
    assert_same_path(ours, expected)


def test_thresholding_of_dpmpp_2m(toy: Network) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, timestep_spacing="trailing", thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5
    )
    bounded = samplers.clipped(OURS.denoiser(toy), {"quantile": 0.9, "max": 1.5})
    ours = samplers.dpmpp_2m(bounded, NOISE, OURS.schedule, 20, spacing="trailing")
    assert_same_path(ours, theirs(scheduler, 20, toy))


@pytest.mark.parametrize("wrong", ["yes", -1.0, 0.0, {"ratio": 0.9}, {"quantile": 2.0}, {"max": 0.5}, {"max": True}])
def test_bounds_that_are_none(toy: Network, wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"clip|x_0"):
        samplers.clipped(OURS.denoiser(toy), wrong)
    assert samplers.clipped(toy, None) is toy
    assert samplers.clipped(toy, False) is toy
