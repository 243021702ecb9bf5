"""diffusers' `scheduler_config.json` and ours, both ways: the noise schedule, the prediction, and how is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldmkit.diffusion import Diffusion
from ldmkit.errors import CheckpointError
from ldmkit.interop.diffusers.defaults import SCHEDULERS, ClassConfig, complete
from ldmkit.interop.diffusers.describe import refuse
from ldmkit.interop.diffusers.samplers import SAMPLERS, STEPS, clip_of, ends_clean, multistep, refused
from ldmkit.schedules.discrete import Discrete

Json = dict[str, Any]
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
NOISE = {"linear": "scaled_linear", "plain-linear": "linear"}  # the original's and ours -> diffusers'
# Of schedulers that are not supported, why not.
REASONS = {
    "CMStochasticIterativeScheduler": "a consistency model predicts x_0 with a boundary condition, which ldmkit does not have",
    "KarrasVeScheduler": "its noise levels are not stored in the folder",
    "ScoreSdeVeScheduler": "it is variance exploding, with a corrector that ldmkit does not have",
    "ScoreSdeVpScheduler": "it has its own sampler on a continuous schedule, which ldmkit does not have",
    "IPNDMScheduler": "its noise levels are not stored in the folder",
}


@dataclass
class Read:
    """What a scheduler's config says: `diffusion` and `sampling` sections, and what of it the networks have to follow.

    time: what of the timestep the UNet embeds (`Variant.time`). scale: what latents here are multiplied with, beside the
    autoencoder's own factor. turned: the UNet's output has the other sign.
    """

    diffusion: Json
    sampling: Json
    notes: list[str] = field(default_factory=list)
    time: Json | None = None
    scale: float = 1.0
    turned: bool = False


def scheduler_to(diffusion: Diffusion) -> tuple[str, Json]:
    """(class, config) of a scheduler that steps like the original's DDIM."""
    schedule = diffusion.schedule
    if not isinstance(schedule, Discrete):
        raise refuse(f"its schedule ({schedule.config['type']}) is not a table of betas")
    if diffusion.prediction.name not in PREDICTIONS:
        raise refuse(
            f"it predicts {diffusion.prediction.name}, and DDIMScheduler knows {', '.join(PREDICTIONS.values())}"
        )
    config = schedule.config
    named = config["type"] in NOISE and not config.get("zero_snr") and config.get("shift", 1.0) == 1.0
    betas: Json = (
        {"beta_schedule": NOISE[config["type"]], "beta_start": config["start"], "beta_end": config["end"]}
        if named
        else {"trained_betas": schedule.betas.tolist()}
    )
    return "DDIMScheduler", {
        "num_train_timesteps": schedule.timesteps,
        **betas,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": PREDICTIONS[diffusion.prediction.name],
        "timestep_spacing": "leading",
    }


def scheduler_from(config: Mapping[str, Any], where: str = "") -> Read:
    """What a scheduler's config says. Raises CheckpointError, naming the class or option, for what ldmkit does not have."""
    full = complete(config, where)
    name = full["_class_name"]
    if name not in SCHEDULERS:
        reason = REASONS.get(name, "ldmkit has no such schedule")
        raise CheckpointError(
            f"the scheduler {name} is not supported: {reason}",
            where=where or None,
            hint=f"read are {', '.join(SCHEDULERS)}; put the config of one of them in its place if the network fits it",
        )
    _refuse_options(full)
    found = _edm(full) if name.startswith("EDM") else _flow(full) if name.startswith("FlowMatch") else _betas(full)
    if full.unknown:
        found.notes.append(f"{name} has no option {', '.join(full.unknown)}: ignored")
    return found


# Options that change what is computed into something that no sampler here does.
_OFF: Json = {
    "use_beta_sigmas": False,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "shift": 1.0,
    "shift_terminal": None,
    "invert_sigmas": False,
    "stochastic_sampling": False,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "euler_at_final": False,
    "predict_x0": True,
    "solver_p": None,
    "disable_corrector": [],
}


def _refuse_options(config: ClassConfig) -> None:
    known = SCHEDULERS[config["_class_name"]]
    for name, off in _OFF.items():
        if name in known and config[name] != off and not (not off and not config[name]):
            raise refused(config, name)


# schedules


def _betas(config: ClassConfig) -> Read:
    name = config["_class_name"]
    predictions = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    if (prediction := config["prediction_type"]) not in predictions:
        raise CheckpointError(f"prediction_type {prediction} is not supported; {', '.join(predictions)} are")
    if (betas := config["trained_betas"]) is not None:
        schedule: Json = {"type": "given", "betas": list(betas)}
    else:
        kinds = {theirs: ours for ours, theirs in NOISE.items()} | {"squaredcos_cap_v2": "cosine"}
        if (kind := config["beta_schedule"]) not in kinds:
            raise CheckpointError(f"beta_schedule {kind} is not supported; {', '.join(kinds)} are")
        schedule = {"type": kinds[kind], "timesteps": int(config["num_train_timesteps"])}
        if kind != "squaredcos_cap_v2":
            schedule |= {"start": config["beta_start"], "end": config["beta_end"]}
    if "rescale_betas_zero_snr" in SCHEDULERS[name] and config["rescale_betas_zero_snr"]:
        schedule["zero_snr"] = True
    found = Read({"schedule": schedule, "prediction": predictions[prediction]}, {"steps": STEPS, "guidance": 1.0})
    found.sampling |= SAMPLERS[name](config, found.notes)
    if (clip := clip_of(config)) is not None:
        found.sampling["clip"] = clip
        if name.startswith("DDIM"):
            found.sampling["clipped_eps"] = False  # DDIMScheduler keeps the eps of the prediction before it is clipped
    return found


def _edm(config: ClassConfig) -> Read:
    """Karras et al. 2022: the network sees log(sigma) / 4, and data whose deviation is `sigma_data`."""
    if config["prediction_type"] not in ("epsilon", "v_prediction"):
        raise refused(config, "prediction_type")
    sigmas = {name: float(config[name]) for name in ("sigma_min", "sigma_max", "rho")}
    sigmas["timesteps"] = int(config["num_train_timesteps"])
    spacings = {"karras": "linspace", "exponential": "exponential"}
    if config["sigma_schedule"] not in spacings:
        raise refused(config, "sigma_schedule")
    # `edm` is even in sigma^(1 / rho), so that even timesteps are Karras' own spacing.
    sampling: Json = {"steps": STEPS, "guidance": 1.0, "spacing": spacings[config["sigma_schedule"]]}
    if config["_class_name"] == "EDMEulerScheduler":
        sampling |= {"sampler": "euler", "clean": ends_clean(config)}
    else:
        sampling |= multistep(config)
        if (clip := clip_of(config)) is not None:
            sampling["clip"] = clip
    return Read(
        {
            "schedule": {"type": "edm", "sigma_data": float(config["sigma_data"]), **sigmas},
            "prediction": "v",
        },
        sampling,
        time={"type": "log-sigma", **sigmas},
        scale=1.0 / float(config["sigma_data"]),
        turned=config["prediction_type"] == "epsilon",
    )


def _flow(config: ClassConfig) -> Read:
    """The rectified flow: its networks see T sigma, one more than the timestep here."""
    heun = config["_class_name"] == "FlowMatchHeunDiscreteScheduler"
    for name in ("use_karras_sigmas", "use_exponential_sigmas"):
        if not heun and config[name]:
            raise refused(config, name)
    return Read(
        {"schedule": {"type": "flow", "timesteps": int(config["num_train_timesteps"])}, "prediction": "flow"},
        {
            "sampler": "heun" if heun else "euler",
            "steps": STEPS,
            "guidance": 1.0,
            "spacing": "linspace",
            "clean": True,
        },
        time={"type": "offset", "by": 1.0},
    )
