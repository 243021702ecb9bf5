"""ldmkit's UNets and autoencoders as diffusers' `config.json` files; what diffusers cannot say is refused with the reason."""

from __future__ import annotations

from typing import Any

from torch import nn

from ldmkit.autoencoder import Autoencoder
from ldmkit.denoiser.levels import level_widths, resolve_levels
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import UsageError

Json = dict[str, Any]


def refuse(reason: str) -> UsageError:
    """The UsageError for what diffusers cannot represent."""
    return UsageError(f"diffusers cannot represent this model: {reason}")


def _groups(module: nn.Module, what: str, key: str) -> int:
    counts = {norm.num_groups for norm in module.modules() if isinstance(norm, nn.GroupNorm)}
    if len(counts) != 1:
        raise refuse(
            f"its {what}'s group norms have {', '.join(map(str, sorted(counts)))} groups, and diffusers has one number "
            f"(set `{key}` for training)"
        )
    return counts.pop()


# UNet


def unet_to(unet: UNet, sample_size: int | tuple[int, int]) -> tuple[str, Json]:
    """(class, config) of the UNet in diffusers."""
    config, variant = unet.config, unet.variant
    if config["multipliers"][0] != 1:
        raise refuse(
            f"its first multiplier is {config['multipliers'][0]}; diffusers' first level is as wide as its stem"
        )
    if variant.vector is not None:
        raise refuse("its UNet maps a vector to the time embedding, for which no pipeline has a condition")
    if variant.time is not None:
        raise refuse("its UNet embeds something other than the timestep")
    if variant.self_transformer:
        raise refuse("its transformers read no tokens, and UNet2DConditionModel cannot do without")
    if variant.plain_attention:
        raise refuse("it has plain attention beside its transformers")
    if config["shortcut"]:
        raise refuse("its UNet has a linear shortcut (denoiser.shortcut)")
    levels = resolve_levels(config)
    groups = _groups(unet, "UNet", "denoiser.variant.groups")
    common: Json = {
        "sample_size": sample_size if isinstance(sample_size, int) else list(sample_size),
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "block_out_channels": [level.width for level in levels],
        "downsample_padding": 1,
        "dropout": config["dropout"],
        "act_fn": "silu",
        "norm_num_groups": groups,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if variant.scale_shift else "default",
    }
    if unet.context_width is None:
        return "UNet2DModel", {**common, **_plain_unet(unet, groups)}
    return "UNet2DConditionModel", {**common, **_condition_unet(unet)}


def _plain_unet(unet: UNet, groups: int) -> Json:
    config, variant, levels = unet.config, unet.variant, resolve_levels(unet.config)
    widths = {level.width // level.heads for i, level in enumerate(levels) if level.attends or i == len(levels) - 1}
    if len(widths) > 1:
        raise refuse(
            f"its attention heads are {', '.join(map(str, sorted(widths)))} wide at different levels, and UNet2DModel has one "
            "width for all (train with `head_width` instead of `heads`)"
        )
    if len({level.blocks for level in levels}) > 1:
        raise refuse("it has different numbers of blocks at different levels, and UNet2DModel has one number")
    kind = "Resnet{}sampleBlock2D" if variant.resample_blocks else "{}Block2D"
    down = ["AttnDownBlock2D" if level.attends else kind.format("Down") for level in levels]
    up = ["AttnUpBlock2D" if level.attends else kind.format("Up") for level in reversed(levels)]
    style = "resnet" if variant.resample_blocks else "conv"
    return {
        "time_embedding_type": "positional",
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": levels[0].blocks,
        "attention_head_dim": widths.pop(),
        "downsample_type": style,
        "upsample_type": style,
        # Without it, the middle attention of a scale_shift model has no norm.
        "attn_norm_num_groups": groups if variant.scale_shift else None,
        "add_attention": True,
        "num_class_embeds": config["variant"]["classes"],
    }


def _condition_unet(unet: UNet) -> Json:
    levels = resolve_levels(unet.config)
    if unet.variant.resample_blocks:
        raise refuse("it resamples in residual blocks and reads tokens, a pair that UNet2DConditionModel does not have")
    return {
        "down_block_types": ["CrossAttnDownBlock2D" if level.attends else "DownBlock2D" for level in levels],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["CrossAttnUpBlock2D" if level.attends else "UpBlock2D" for level in reversed(levels)],
        "layers_per_block": [level.blocks for level in levels],
        "attention_head_dim": [level.heads for level in levels],  # a misnomer of diffusers': the number of heads
        "transformer_layers_per_block": [level.depth for level in levels],
        "cross_attention_dim": unet.context_width,
        "use_linear_projection": unet.variant.linear_projection,
        "num_class_embeds": unet.variant.classes,
        "only_cross_attention": [level.only_cross for level in levels] if unet.variant.only_cross_attention else False,
    }


# autoencoder


def autoencoder_to(model: Autoencoder) -> tuple[str, Json]:
    """(class, config) of the autoencoder in diffusers."""
    config = model.config
    if config["type"] == "identity":
        raise refuse("it has no autoencoder, and every pipeline for it in diffusers decodes")
    if config["multipliers"][0] != 1:
        raise refuse(f"its autoencoder's first multiplier is {config['multipliers'][0]}; in diffusers it is 1")
    if config["attention_type"] == "linear":
        raise refuse("its autoencoder has linear attention")
    if config["shortcut"]:
        raise refuse("its autoencoder has a linear shortcut")
    if config["middle_attention"] not in (True, False):
        raise refuse(f"its autoencoder attends only in the middle of the {config['middle_attention']}")
    if not isinstance(config["blocks"], int):
        raise refuse("its autoencoder has different numbers of blocks at different levels")
    scales = set(model.latent_scale.tolist())
    if len(scales) > 1 or bool(model.latent_shift.any()):
        raise refuse("its latents have a scale or shift of their own in each channel, which the pipelines do not apply")
    levels = len(config["multipliers"])
    attends = [config["resolution"] // 2**level in config["attention"] for level in range(levels)]
    common: Json = {
        "in_channels": config["image_channels"],
        "out_channels": config["image_channels"],
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
        "block_out_channels": level_widths(config["channels"], config["multipliers"]),
        "layers_per_block": config["blocks"],
        "act_fn": "silu",
        "latent_channels": config["latent_channels"],
        "sample_size": config["resolution"],
        "norm_num_groups": _groups(model, "autoencoder", "autoencoder.groups"),
        "scaling_factor": scales.pop(),
        "mid_block_add_attention": config["middle_attention"],
    }
    if config["type"] == "kl":
        return "AutoencoderKL", {**common, "force_upcast": False}
    return "VQModel", {
        **common,
        "num_vq_embeddings": config["codebook"],
        "vq_embed_dim": config["latent_channels"],
        "norm_type": "group",
    }
