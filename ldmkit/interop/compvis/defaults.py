"""What a parameter that the original's YAML leaves out means there: the defaults of its constructors.

From `openaimodel.UNetModel`, `ddpm.DDPM` with `ddpm.LatentDiffusion`, `model.Encoder` and `model.Decoder`, and `autoencoder`, of
latent-diffusion and of stablediffusion, which added to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldmkit.errors import CheckpointError

Json = dict[str, Any]

UNET: Json = {
    "dropout": 0,
    "channel_mult": [1, 2, 4, 8],
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "num_heads": -1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "use_spatial_transformer": False,
    "transformer_depth": 1,
    "context_dim": None,
    "n_embed": None,
    "disable_self_attentions": None,
    "num_attention_blocks": None,
    "disable_middle_self_attn": False,
    "use_linear_in_transformer": False,
}
# Parameters that change no number: how the original computes, and what it never reads.
UNET_WITHOUT_EFFECT = (
    "image_size",
    "use_checkpoint",
    "use_fp16",
    "use_bf16",
    "legacy",
    "spatial_transformer_attn_type",
)
UNET_NEEDED = (
    "in_channels",
    "model_channels",
    "out_channels",
    "num_res_blocks",
    "attention_resolutions",
    "adm_in_channels",
)
LATENT_DIFFUSION: Json = {
    "timesteps": 1000,
    "beta_schedule": "linear",
    "loss_type": "l2",
    "linear_start": 1e-4,
    "linear_end": 2e-2,
    "cosine_s": 8e-3,
    "given_betas": None,
    "original_elbo_weight": 0.0,
    "parameterization": "eps",
    "learn_logvar": False,
    "logvar_init": 0.0,
    "cond_stage_key": "image",
    "scale_factor": 1.0,
    "scale_by_std": False,
}
NETWORK: Json = {
    "ch_mult": [1, 2, 4, 8],
    "dropout": 0.0,
    "resamp_with_conv": True,
    "double_z": True,
    "use_linear_attn": False,
    "attn_type": "vanilla",
    "give_pre_end": False,
    "tanh_out": False,
}
FIRST_STAGE: Json = {"remap": None}


class Params(dict[str, Any]):
    """Parameters with the constructor's defaults filled in; one that neither has is an error that names it."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
        super().__init__({**defaults, **values})
        self.where = where

    def __missing__(self, name: str) -> Any:
        raise CheckpointError(
            f"the configuration's {self.where} has no {name}", hint="give the YAML that came with the weights"
        )
