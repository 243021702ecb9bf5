"""What a key that a `config.json` of diffusers leaves out means there: the defaults of each class, and of no other.

diffusers writes every key that its version knows, so older files have fewer. A test holds these tables against the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldmkit.errors import CheckpointError

Json = dict[str, Any]


class ClassConfig(dict[str, Any]):
    """A config with its class' defaults filled in; a key that neither has is an error that names key and file."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(
            f"{self.get('_class_name', 'the configuration')} has no {key}, and no default is known for it",
            where=self.where or None,
        )

    @property
    def unknown(self) -> list[str]:
        """Keys that are set to something and that the class had none of when ldmkit's tables were made."""
        known = DEFAULTS.get(self["_class_name"], {})
        return [key for key, value in self.items() if not key.startswith("_") and key not in known and value]


def complete(config: Mapping[str, Any], where: str = "") -> ClassConfig:
    """The config with its class' defaults. Raises CheckpointError where it names no class."""
    if not isinstance(name := config.get("_class_name"), str):
        raise CheckpointError("the configuration has no _class_name", where=where or None)
    return ClassConfig({**DEFAULTS.get(name, {}), **config}, where)


_BETAS: Json = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
_THRESHOLDING: Json = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIPPING: Json = {"clip_sample": True, "clip_sample_range": 1.0, **_THRESHOLDING}
_SIGMAS: Json = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_FLOW_SIGMAS: Json = {"use_flow_sigmas": False, "flow_shift": 1.0}
_SHIFTING: Json = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_LEADING: Json = {"timestep_spacing": "leading", "rescale_betas_zero_snr": False}
_DDIM: Json = {**_BETAS, **_CLIPPING, **_LEADING, "set_alpha_to_one": True}
_DDPM: Json = {**_BETAS, **_CLIPPING, **_LEADING, "variance_type": "fixed_small"}
_HEUN: Json = {**_BETAS, **_SIGMAS, "beta_start": 0.00085, "beta_end": 0.012}
_DISTILLED: Json = {**_HEUN, **_CLIPPING, **_LEADING, "clip_sample": False, "beta_schedule": "scaled_linear"}
_DISTILLED = {key: value for key, value in _DISTILLED.items() if key not in _SIGMAS} | {
    "original_inference_steps": 50,
    "set_alpha_to_one": True,
    "timestep_scaling": 10.0,
}
_SOLVER: Json = {**_BETAS, **_THRESHOLDING, **_SIGMAS, **_FLOW_SIGMAS, **_SHIFTING, "solver_order": 2}
_DPM: Json = {
    **_SOLVER,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "lambda_min_clipped": float("-inf"),
    "variance_type": None,
    "final_sigmas_type": "zero",
}
_EDM: Json = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}
_FLOW: Json = {"num_train_timesteps": 1000, "shift": 1.0}
_SINGLESTEP: Json = {key: value for key, value in _DPM.items() if key not in ("timestep_spacing", "steps_offset")}

SCHEDULERS: dict[str, Json] = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "PNDMScheduler": {**_BETAS, "timestep_spacing": "leading", "skip_prk_steps": False, "set_alpha_to_one": False},
    "LMSDiscreteScheduler": {**_BETAS, **_SIGMAS},
    "EulerDiscreteScheduler": {
        **_BETAS,
        **_SIGMAS,
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": {**_BETAS, "rescale_betas_zero_snr": False},
    "HeunDiscreteScheduler": {**_HEUN, "clip_sample": False, "clip_sample_range": 1.0},
    "KDPM2DiscreteScheduler": _HEUN,
    "KDPM2AncestralDiscreteScheduler": _HEUN,
    "DPMSolverMultistepScheduler": {
        **_DPM,
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "rescale_betas_zero_snr": False,
    },
    "DPMSolverSinglestepScheduler": {**_SINGLESTEP, "lower_order_final": False},
    "UniPCMultistepScheduler": {
        **_SOLVER,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        "final_sigmas_type": "zero",
        "rescale_betas_zero_snr": False,
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    },
    "DEISMultistepScheduler": {
        **_SOLVER,
        "algorithm_type": "deis",
        "solver_type": "logrho",
        "lower_order_final": True,
    },
    "LCMScheduler": _DISTILLED,
    "TCDScheduler": _DISTILLED,
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": {
        **_EDM,
        **_THRESHOLDING,
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
    },
    "FlowMatchEulerDiscreteScheduler": {
        **_FLOW,
        **_SIGMAS,
        **_SHIFTING,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "stochastic_sampling": False,
    },
    "FlowMatchHeunDiscreteScheduler": _FLOW,
}

_UNET: Json = {
    "sample_size": None,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "attention_head_dim": 8,
    "class_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
}
_VAE: Json = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "mid_block_add_attention": True,
}
MODELS: dict[str, Json] = {
    "UNet2DModel": {
        **_UNET,
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
        "block_out_channels": [224, 448, 672, 896],
        "downsample_type": "conv",
        "upsample_type": "conv",
        "attn_norm_num_groups": None,
        "add_attention": True,
        "num_train_timesteps": None,
    },
    "UNet2DConditionModel": {
        **_UNET,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "only_cross_attention": False,
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1280,
        "transformer_layers_per_block": 1,
        "reverse_transformer_layers_per_block": None,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "num_attention_heads": None,
        "dual_cross_attention": False,
        "use_linear_projection": False,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "upcast_attention": False,
        "resnet_skip_time_act": False,
        "resnet_out_scale_factor": 1.0,
        "time_embedding_act_fn": None,
        "timestep_post_act": None,
        "time_cond_proj_dim": None,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "projection_class_embeddings_input_dim": None,
        "attention_type": "default",
        "class_embeddings_concat": False,
        "mid_block_only_cross_attention": None,
        "cross_attention_norm": None,
        "addition_embed_type_num_heads": 64,
    },
    "AutoencoderKL": {
        **_VAE,
        "latent_channels": 4,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "force_upcast": True,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    },
    "VQModel": {
        **_VAE,
        "latent_channels": 3,
        "num_vq_embeddings": 256,
        "vq_embed_dim": None,
        "norm_type": "group",
        "lookup_from_codebook": False,
        "force_upcast": False,
    },
}
DEFAULTS: dict[str, Json] = {**SCHEDULERS, **MODELS}
