"""diffusers' `scheduler_config.json` and ours, both ways: the noise schedule, the prediction, and how is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldmkit.diffusion import Diffusion
from ldmkit.errors import CheckpointError
from ldmkit.interop.diffusers.config import refuse
from ldmkit.schedules.discrete import Discrete

Json = dict[str, Any]
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
NOISE = {"linear": "scaled_linear", "plain-linear": "linear"}  # the original's and ours -> diffusers'


def scheduler_to(diffusion: Diffusion) -> tuple[str, Json]:
    """(class, config) of a scheduler that steps like the original's DDIM."""
    schedule = diffusion.schedule
    if not isinstance(schedule, Discrete):
        raise refuse(f"its schedule ({schedule.config['type']}) is no table of betas")
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


def scheduler_from(config: Mapping[str, Any]) -> tuple[Json, Json, list[str]]:
    """(`diffusion` section, `sampling` defaults, notes) of a scheduler's config."""
    name = config.get("_class_name", "DDIMScheduler")
    notes = [] if name in ("DDIMScheduler", "PNDMScheduler") else [f"sampling with ddim in place of {name}"]
    predictions = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in predictions:
        raise CheckpointError(f"prediction_type {prediction} is not read; {', '.join(predictions)} are")
    timesteps = int(config.get("num_train_timesteps", 1000))
    if (betas := config.get("trained_betas")) is not None:
        schedule: Json = {"type": "given", "betas": list(betas)}
    else:
        kinds = {theirs: ours for ours, theirs in NOISE.items()} | {"squaredcos_cap_v2": "cosine"}
        kind = config.get("beta_schedule", "linear")
        if kind not in kinds:
            raise CheckpointError(f"beta_schedule {kind} is not read; {', '.join(kinds)} are")
        schedule = {"type": kinds[kind], "timesteps": timesteps}
        if kind != "squaredcos_cap_v2":
            schedule |= {"start": config.get("beta_start", 1e-4), "end": config.get("beta_end", 0.02)}
    if config.get("rescale_betas_zero_snr"):
        schedule["zero_snr"] = True
    if config.get("clip_sample", name == "DDIMScheduler"):
        notes.append("the scheduler clips its x_0; latents are not clipped here")
    return {"schedule": schedule, "prediction": predictions[prediction]}, _sampling(config, name, notes), notes


def _sampling(config: Mapping[str, Any], name: str, notes: list[str]) -> Json:
    spacing, offset = config.get("timestep_spacing", "leading"), config.get("steps_offset", 0)
    clean = bool(config.get("set_alpha_to_one", name == "DDIMScheduler"))
    sampler = {"sampler": "plms" if name == "PNDMScheduler" else "ddim", "steps": 50, "guidance": 1.0}
    if name == "PNDMScheduler" and not config.get("skip_prk_steps", False):
        notes.append("PNDM's Runge-Kutta steps are not taken: sampling is PLMS throughout")
    if spacing == "leading" and offset == 1:
        if clean:
            notes.append(
                "the scheduler ends on clean data after timestep 1; here sampling ends on timestep 0's noise level"
            )
        return {**sampler, "spacing": "compvis"}
    return {**sampler, "spacing": spacing, "clean": clean}
