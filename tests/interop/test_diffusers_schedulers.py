"""Folders with the schedulers of diffusers: the same latents as diffusers' own loop, or a refusal that names the reason."""

from __future__ import annotations

import inspect
import json
import math
import warnings

import pytest
import torch

from ldmkit.errors import CheckpointError
from ldmkit.interop import import_diffusers
from ldmkit.interop.diffusers.defaults import DEFAULTS, SCHEDULERS, complete
from ldmkit.interop.diffusers.schedule import scheduler_from
from ldmkit.samplers import make_grid
from ldmkit.schedules import make as make_schedule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install diffusers")

pytestmark = pytest.mark.filterwarnings("ignore")


def _reads_spacings() -> bool:
    try:
        make_grid(make_schedule(type="linear"), 7, {"type": "leading", "offset": 1, "whole_strides": True})
    except Exception:
        return False
    return True


spacings = pytest.mark.skipif(not _reads_spacings(), reason="needs samplers that take a spacing as a mapping")


def _reads_sigma_data() -> bool:
    try:
        make_schedule(type="edm", sigma_data=0.5)
    except Exception:
        return False
    return True


UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
VQ = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 8,
    "num_vq_embeddings": 16,
    "latent_channels": 3,
    "scaling_factor": 0.5,
}


def randomised(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + (parameter.ndim == 1) * 0.2)
    return module.eval()


@pytest.fixture(scope="module")
def networks():
    return randomised(diffusers.UNet2DModel(**UNET)), randomised(diffusers.VQModel(**VQ))


def folder(path, networks, scheduler):
    unet, autoencoder = networks
    unet.save_pretrained(path / "unet")
    autoencoder.save_pretrained(path / "vqvae")
    scheduler.save_pretrained(path / "scheduler")
    (path / "model_index.json").write_text(json.dumps({"_class_name": "LDMPipeline"}))
    return path


@torch.no_grad()
def theirs(unet, scheduler, noise, steps):
    scheduler.set_timesteps(steps)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(unet(scaled, t).sample, t, x).prev_sample
    return x


def start(scheduler):
    """Their amplitude of the noise at the first step over that of unit noise at its level, which is where ldmkit starts.

    Schedulers in sigma leave the data's part out where they begin at the end of the schedule.
    """
    if scheduler.init_noise_sigma == 1:
        return 1.0
    return float(scheduler.init_noise_sigma) / math.hypot(
        scheduler.config.get("sigma_data", 1.0), float(scheduler.sigmas[0])
    )


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# Every scheduler that draws no noise of its own.
READ = {
    "DDIM": ("DDIMScheduler", {**BETAS, "clip_sample": False}),
    "DDIM, Stable Diffusion's": (
        "DDIMScheduler",
        {**BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    ),
    "DDIM, another offset": ("DDIMScheduler", {**BETAS, "clip_sample": False, "steps_offset": 5}),
    "DDIM, trailing": ("DDIMScheduler", {**BETAS, "clip_sample": False, "timestep_spacing": "trailing"}),
    "DDIM, linspace": ("DDIMScheduler", {**BETAS, "clip_sample": False, "timestep_spacing": "linspace"}),
    "DDIM, clipped": ("DDIMScheduler", {}),
    "DDIM, clipped to 2": ("DDIMScheduler", {"clip_sample_range": 2.0}),
    "DDIM, thresholded": ("DDIMScheduler", {"thresholding": True, "sample_max_value": 3.0}),
    "PNDM, Stable Diffusion's": ("PNDMScheduler", {**BETAS, "skip_prk_steps": True, "steps_offset": 1}),
    "PNDM": ("PNDMScheduler", BETAS),
    "PNDM, v": ("PNDMScheduler", {**BETAS, "skip_prk_steps": True, "prediction_type": "v_prediction"}),
    "Euler": ("EulerDiscreteScheduler", BETAS),
    "Euler, leading": ("EulerDiscreteScheduler", {**BETAS, "timestep_spacing": "leading", "steps_offset": 1}),
    "Euler, trailing, v": (
        "EulerDiscreteScheduler",
        {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ),
    "Euler, karras": ("EulerDiscreteScheduler", {**BETAS, "use_karras_sigmas": True}),
    "Heun": ("HeunDiscreteScheduler", BETAS),
    "LMS": ("LMSDiscreteScheduler", BETAS),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", BETAS),
    "DPM-Solver++, leading": (
        "DPMSolverMultistepScheduler",
        {**BETAS, "timestep_spacing": "leading", "steps_offset": 1},
    ),
    "DPM-Solver++, trailing, to the first level": (
        "DPMSolverMultistepScheduler",
        {**BETAS, "timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"},
    ),
    "DPM-Solver++, not lowered": (
        "DPMSolverMultistepScheduler",
        {**BETAS, "lower_order_final": False, "final_sigmas_type": "sigma_min"},
    ),
    "DPM-Solver": (
        "DPMSolverMultistepScheduler",
        {**BETAS, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "UniPC": ("UniPCMultistepScheduler", BETAS),
    "DEIS": ("DEISMultistepScheduler", BETAS),
    "EDM": ("EDMEulerScheduler", {}),
    "EDM, v, another deviation": (
        "EDMEulerScheduler",
        {"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_max": 20.0},
    ),
    "EDM, DPM-Solver++": ("EDMDPMSolverMultistepScheduler", {}),
}
# Numbers of steps that divide 1000, and do not; PNDM's Runge-Kutta start takes more evaluations than steps.
STEPS = (10, 7, 30)


@spacings
@pytest.mark.parametrize("name", READ)
def test_schedulers_sample_as_in_diffusers(registry, tmp_path, networks, name):
    kind, options = READ[name]
    if kind.startswith("EDM") and not _reads_sigma_data():
        pytest.skip("needs a schedule edm with the deviation of its data, sigma_data")
    # The eps of an unclipped prediction is kept, in which rounding weighs more; without clipping the difference is of order 1.
    limit = 1e-3 if {"thresholding", "clip_sample_range"} & set(options) or name == "DDIM, clipped" else 1e-4
    scheduler = getattr(diffusers, kind)(**options)
    found = import_diffusers(folder(tmp_path / "out", networks, scheduler), registry=registry)
    for steps in STEPS:
        noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(steps))
        wanted = theirs(networks[0], scheduler, noise, steps)
        latents = found.model.sample(noise=noise * start(scheduler), steps=steps, output="latent")
        difference = (found.model.autoencoder.unscale(latents) * 0.5 - wanted).abs().max() / wanted.std()
        print(name, steps, float(difference))
        assert difference < limit


@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
@pytest.mark.parametrize("steps", [5, 10])
def test_flows_sample_as_in_diffusers(registry, tmp_path, networks, kind, steps):
    scheduler = getattr(diffusers, kind)()
    found = import_diffusers(folder(tmp_path / "out", networks, scheduler), registry=registry)
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = theirs(networks[0], scheduler, noise, steps)
    latents = found.model.sample(noise=noise, steps=steps, output="latent")
    assert (found.model.autoencoder.unscale(latents) * 0.5 - wanted).abs().max() / wanted.std() < 1e-4


@torch.no_grad()
def test_edm_networks_compute_the_same_x0(networks):
    """c_skip x + c_out F(c_in x, log(sigma) / 4) in their units is what a prediction of v gives in ours."""
    from ldmkit.denoiser.unet import UNet
    from ldmkit.interop.diffusers import keys
    from ldmkit.interop.diffusers.config import unet_from

    found = scheduler_from({"_class_name": "EDMEulerScheduler", "sigma_data": 1.0})
    options = unet_from({**networks[0].config, "_class_name": "UNet2DModel"})
    options["variant"] |= {"time": found.time}
    ours = UNet.of_widths(**options).eval()
    ours.load_state_dict(keys.read(keys.unet_rules(ours), networks[0].state_dict(), ours.state_dict()))
    root = [0.002 ** (1 / 7), 80.0 ** (1 / 7)]
    for t in (0.0, 300.0, 999.0):
        sigma = (root[0] + t / 999 * (root[1] - root[0])) ** 7
        x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        c_noise = torch.tensor([0.25]) * torch.tensor([sigma]).log()
        torch.testing.assert_close(ours(x, torch.tensor([t])), networks[0](x, c_noise).sample, atol=2e-5, rtol=1e-4)


REFUSED = [
    "CMStochasticIterativeScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "KarrasVeScheduler",
    "IPNDMScheduler",
    "UnCLIPScheduler",
    "NobodysScheduler",
]


@pytest.mark.parametrize("name", REFUSED)
def test_other_schedulers_are_refused_by_name(name):
    with pytest.raises(CheckpointError, match=f"the scheduler {name} is not supported.*\n.*DDIMScheduler"):
        scheduler_from({"_class_name": name})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}),
        ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {"euler_at_final": True}),
        ("DDPMScheduler", {"variance_type": "learned_range"}),
        ("DDIMScheduler", {"timestep_spacing": "elsewhere"}),
        ("EDMEulerScheduler", {"sigma_schedule": "linear"}),
    ],
)
def test_options_that_no_sampler_follows_are_refused_by_name(name, options):
    ((key, value),) = options.items()
    with pytest.raises(CheckpointError, match=f"{name} with {key}: {value!r}"):
        scheduler_from({"_class_name": name, **options}, "scheduler_config.json")


def test_what_a_config_leaves_out_is_its_class_default():
    """What each class of diffusers says itself."""
    for name, table in DEFAULTS.items():
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
        wanted = {key: p.default for key, p in parameters.items() if key != "self"}
        assert {k: list(v) if isinstance(v, tuple) else v for k, v in wanted.items()} == table, name


def test_a_key_without_a_default_is_an_error_that_names_key_and_file():
    config = complete({"_class_name": "DDIMScheduler"}, "scheduler/scheduler_config.json")
    assert config["beta_start"] == 0.0001
    with pytest.raises(CheckpointError, match=r"DDIMScheduler has no gamma.*\n?") as caught:
        config["gamma"]
    assert "scheduler/scheduler_config.json" in str(caught.value)
    with pytest.raises(CheckpointError, match="has no _class_name"):
        scheduler_from({"beta_start": 0.1})


def test_keys_that_the_class_does_not_know_are_told():
    found = scheduler_from(
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "clip_sample": True, "_version": "1"}
    )
    assert found.notes == ["PNDMScheduler has no option clip_sample: ignored"]


def test_every_scheduler_that_is_read_says_how_it_samples():
    for name in SCHEDULERS:
        found = scheduler_from({"_class_name": name})
        assert found.sampling["sampler"], name
