"""How a scheduler of diffusers samples, in ldmkit's names: the sampler, its spacing and options, where it ends, what it clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ldmkit.errors import CheckpointError
from ldmkit.interop.diffusers.defaults import SCHEDULERS, ClassConfig

Json = dict[str, Any]
STEPS = 50  # no scheduler says how many; the pipelines' own number
DISTILLED_STEPS = 4


def refused(config: ClassConfig, name: str) -> CheckpointError:
    """The CheckpointError for an option whose value no sampler here follows."""
    return CheckpointError(
        f"{config['_class_name']} with {name}: {config[name]!r} is not what ldmkit can sample",
        where=config.where or None,
        hint="change it in scheduler_config.json if the network does not depend on it",
    )


def _spacing(config: ClassConfig, **linspace: bool) -> Json:
    """The spacing by name; `linspace`: what that one has beside it."""
    match config["timestep_spacing"]:
        case "leading":
            return {"type": "leading", "offset": int(config["steps_offset"])}
        case "trailing":
            return {"type": "trailing"}
        case "linspace":
            return {"type": "linspace", **linspace}
    raise refused(config, "timestep_spacing")


def ends_clean(config: ClassConfig) -> bool:
    """Whether the last step ends on the data, and not on the first level of noise."""
    if config["final_sigmas_type"] not in ("zero", "sigma_min"):
        raise refused(config, "final_sigmas_type")
    return bool(config["final_sigmas_type"] == "zero")


def clip_of(config: ClassConfig) -> Any:
    """What x_0 is held within: nothing, [-1, 1], a bound, or the quantile of its own values."""
    known = SCHEDULERS[config["_class_name"]]
    if "thresholding" in known and config["thresholding"]:
        return {"quantile": float(config["dynamic_thresholding_ratio"]), "max": float(config["sample_max_value"])}
    if "clip_sample" not in known or not config["clip_sample"]:
        return None
    bound = float(config["clip_sample_range"])
    return True if bound == 1.0 else bound


def _ddim(config: ClassConfig, notes: list[str]) -> Json:
    return {
        "sampler": "ddim",
        "spacing": {**_spacing(config), "whole_strides": True},
        "clean": bool(config["set_alpha_to_one"]),
    }


def _pndm(config: ClassConfig, notes: list[str]) -> Json:
    return {
        **_ddim(config, notes),
        "sampler": "plms",
        "runge_kutta": not config["skip_prk_steps"],
        "extrapolate": "v" if config["prediction_type"] == "v_prediction" else "eps",
    }


def _ddpm(config: ClassConfig, notes: list[str]) -> Json:
    variances = {"fixed_small": 0.0, "fixed_small_log": 0.0, "fixed_large": 1.0}  # small_log is the same noise
    if config["variance_type"] not in variances:
        raise refused(config, "variance_type")
    variance = variances[config["variance_type"]]
    return {"sampler": "ddpm", "spacing": _spacing(config), "clean": True, "variance": variance}


def _k_diffusion(sampler: str) -> Callable[[ClassConfig, list[str]], Json]:
    """Samplers in sigma, which pass between timesteps."""

    def read(config: ClassConfig, notes: list[str]) -> Json:
        known = SCHEDULERS[config["_class_name"]]
        clean = ends_clean(config) if "final_sigmas_type" in known else True
        return {
            "sampler": sampler,
            "spacing": _sigmas(config, _spacing(config, fractional=True), notes),
            "clean": clean,
        }

    return read


def _sigmas(config: ClassConfig, spacing: Json, notes: list[str]) -> Json:
    """The spacing by sigma, where the scheduler says one."""
    known = SCHEDULERS[config["_class_name"]]
    kinds = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_lu_lambdas": "exponential"}
    kind = next((kind for option, kind in kinds.items() if option in known and config[option]), None)
    if kind is None:
        return spacing
    if spacing["type"] != "linspace" and "solver_order" not in known:
        notes.append(
            f"{kind} sigmas reach over all timesteps here, and over those of the {spacing['type']} spacing in "
            f"{config['_class_name']}"
        )
    ends: Json = {
        key: float(config[key]) for key in ("sigma_min", "sigma_max") if key in known and config[key] is not None
    }
    return {"type": kind, **ends}


def multistep(config: ClassConfig) -> Json:
    """Sampler and options of DPM-Solver's multistep family."""
    order, kind = int(config["solver_order"]), config["algorithm_type"]
    orders = {"dpmsolver++": (2,), "sde-dpmsolver++": (2,), "dpmsolver": (1, 2, 3)}
    if kind not in orders:
        raise refused(config, "algorithm_type")
    if order not in orders[kind]:
        raise refused(config, "solver_order")
    if order > 1 and config["solver_type"] != "midpoint":
        raise refused(config, "solver_type")
    sampler = {"dpmsolver++": "dpmpp-2m", "sde-dpmsolver++": "dpmpp-sde", "dpmsolver": "dpm-solver"}[kind]
    options: Json = {"order": order} if kind == "dpmsolver" else {}
    return {"sampler": sampler, "clean": ends_clean(config), **options, **_final(config)}


def _final(config: ClassConfig) -> Json:
    return {} if config["lower_order_final"] else {"lower_order_final": False}


def _solver_spacing(config: ClassConfig, notes: list[str]) -> Json:
    """n + 1 points of which the last is not evaluated."""
    spacing = _spacing(config)
    return _sigmas(config, spacing if spacing["type"] == "trailing" else {**spacing, "drop_last": True}, notes)


def _dpm_multistep(config: ClassConfig, notes: list[str]) -> Json:
    return {**multistep(config), "spacing": _solver_spacing(config, notes)}


def _dpm_singlestep(config: ClassConfig, notes: list[str]) -> Json:
    for name, only in (("algorithm_type", "dpmsolver++"), ("solver_order", 2), ("solver_type", "midpoint")):
        if config[name] != only:
            raise refused(config, name)
    spacing = _sigmas(config, {"type": "linspace", "drop_last": True}, notes)
    return {"sampler": "dpmpp-2s", "paired": True, "spacing": spacing, "clean": ends_clean(config)}


def _unipc(config: ClassConfig, notes: list[str]) -> Json:
    if config["solver_type"] not in ("bh1", "bh2"):
        raise refused(config, "solver_type")
    options = {"order": int(config["solver_order"]), "variant": config["solver_type"]}
    spacing = _solver_spacing(config, notes)
    return {"sampler": "unipc", **options, "spacing": spacing, "clean": ends_clean(config), **_final(config)}


def _deis(config: ClassConfig, notes: list[str]) -> Json:
    for name, only in (("algorithm_type", "deis"), ("solver_type", "logrho")):
        if config[name] != only:
            raise refused(config, name)
    spacing, order = _solver_spacing(config, notes), int(config["solver_order"])
    return {"sampler": "deis", "order": order, "spacing": spacing, "clean": False, **_final(config)}


def _distilled(sampler: str, *options: str) -> Callable[[ClassConfig, list[str]], Json]:
    """Latent consistency models, which follow a grid of their own."""

    def read(config: ClassConfig, notes: list[str]) -> Json:
        own: Json = {"original_steps": int(config["original_inference_steps"])}
        own |= {option: float(config[option]) for option in options}
        return {"sampler": sampler, "steps": DISTILLED_STEPS, **own}

    return read


def _in_place(sampler: str) -> Callable[[ClassConfig, list[str]], Json]:
    def read(config: ClassConfig, notes: list[str]) -> Json:
        notes.append(f"sampling with {sampler} in place of {config['_class_name']}, on its timesteps")
        return _k_diffusion(sampler)(config, notes)

    return read


SAMPLERS: dict[str, Callable[[ClassConfig, list[str]], Json]] = {
    "DDIMScheduler": _ddim,
    "DDIMParallelScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "DDPMParallelScheduler": _ddpm,
    "PNDMScheduler": _pndm,
    "LMSDiscreteScheduler": _k_diffusion("lms"),
    "EulerDiscreteScheduler": _k_diffusion("euler"),
    "EulerAncestralDiscreteScheduler": _k_diffusion("euler-ancestral"),
    "HeunDiscreteScheduler": _k_diffusion("heun"),
    "KDPM2DiscreteScheduler": _in_place("heun"),
    "KDPM2AncestralDiscreteScheduler": _in_place("euler-ancestral"),
    "DPMSolverMultistepScheduler": _dpm_multistep,
    "DPMSolverSinglestepScheduler": _dpm_singlestep,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": _deis,
    "LCMScheduler": _distilled("lcm", "timestep_scaling"),
    "TCDScheduler": _distilled("tcd"),
}
