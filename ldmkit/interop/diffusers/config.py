"""diffusers' `config.json` files and ours, both ways; what one of them cannot say is refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ldmkit.autoencoder import Autoencoder
from ldmkit.denoiser.levels import resolve_levels, spread
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import CheckpointError, UsageError
from ldmkit.interop.sanity import bounded, grouped

Json = dict[str, Any]


def refuse(reason: str) -> UsageError:
    """What diffusers cannot represent."""
    return UsageError(
        f"diffusers cannot represent this model: {reason}", hint="`--format compvis`, or ldmkit's own, can"
    )


def _groups(module: nn.Module, what: str) -> int:
    counts = {norm.num_groups for norm in module.modules() if isinstance(norm, nn.GroupNorm)}
    if len(counts) != 1:
        raise refuse(
            f"its {what}'s group norms have {', '.join(map(str, sorted(counts)))} groups, and diffusers has one number "
            "(set `groups` when training)"
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
    if variant.self_transformer:
        raise refuse("its transformers read no tokens, and UNet2DConditionModel cannot do without")
    if variant.plain_attention:
        raise refuse("it has plain attention beside its transformers")
    levels = resolve_levels(config)
    groups = _groups(unet, "UNet")
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
    }


# Options that, set to something else, change the network into one that ldmkit does not have.
_UNET_OFF: Json = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "add_attention": True,
    "class_embed_type": None,
    "dual_cross_attention": False,
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "only_cross_attention": False,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "attention_type": "default",
    "reverse_transformer_layers_per_block": None,
    "num_attention_heads": None,
}


def unet_from(config: Mapping[str, Any]) -> Json:
    """`UNet(**options)` of a UNet2DModel's or UNet2DConditionModel's config."""
    _check_off(config, _UNET_OFF, "UNet")
    bounded(config, ("layers_per_block", "transformer_layers_per_block"), "unet")
    bounded({"levels": len(config["block_out_channels"])}, ("levels",), "unet")
    name = config.get("_class_name")
    if name not in ("UNet2DModel", "UNet2DConditionModel"):
        raise CheckpointError(f"no UNet of ldmkit is like {name}; UNet2DModel and UNet2DConditionModel are read")
    widths = list(config["block_out_channels"])
    down = list(config["down_block_types"])
    if any(width % widths[0] for width in widths):
        raise CheckpointError(f"block_out_channels {widths} are no multiples of the first, which ldmkit's UNet has")
    grouped(widths, config.get("norm_num_groups", 32), "UNet")
    known = {"DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D", "ResnetDownsampleBlock2D"}
    if unknown := sorted(set(down) - known):
        raise CheckpointError(f"blocks {', '.join(unknown)} are not read; {', '.join(sorted(known))} are")
    conditional = name == "UNet2DConditionModel"
    own = _condition_options(config, len(down)) if conditional else _plain_options(config)
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "channels": widths[0],
        "multipliers": [width // widths[0] for width in widths],
        "attention": [2**i for i, block in enumerate(down) if "Attn" in block],
        "dropout": float(config.get("dropout", 0.0)),
        **own,
        "variant": {
            "scale_shift": config.get("resnet_time_scale_shift", "default") == "scale_shift",
            "resample_blocks": config.get("downsample_type", "conv") == "resnet" or "ResnetDownsampleBlock2D" in down,
            "linear_projection": bool(config.get("use_linear_projection", False)),
            "groups": config.get("norm_num_groups", 32),
            "classes": config.get("num_class_embeds"),
        },
    }


def _plain_options(config: Mapping[str, Any]) -> Json:
    head = config.get("attention_head_dim", 8)
    heads: Json = {"heads": 1} if head is None else {"head_width": head}
    return {"context_width": None, "blocks": config["layers_per_block"], "transformer_depth": 1, **heads}


def _condition_options(config: Mapping[str, Any], levels: int) -> Json:
    if not isinstance(config["cross_attention_dim"], int):
        raise CheckpointError("a cross_attention_dim per level is not read")
    return {
        "context_width": config["cross_attention_dim"],
        "blocks": spread("layers_per_block", config["layers_per_block"], levels),
        "heads": spread("attention_head_dim", config["attention_head_dim"], levels),
        "transformer_depth": spread(
            "transformer_layers_per_block", config.get("transformer_layers_per_block", 1), levels
        ),
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
        "block_out_channels": [config["channels"] * multiplier for multiplier in config["multipliers"]],
        "layers_per_block": config["blocks"],
        "act_fn": "silu",
        "latent_channels": config["latent_channels"],
        "sample_size": config["resolution"],
        "norm_num_groups": _groups(model, "autoencoder"),
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


_AUTOENCODER_OFF: Json = {
    "act_fn": "silu",
    "norm_type": "group",
    "lookup_from_codebook": False,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}


def autoencoder_from(config: Mapping[str, Any]) -> tuple[Json, float, float]:
    """(`make(**options)`, scale, shift) of an AutoencoderKL's or VQModel's config."""
    name = config.get("_class_name")
    if name not in ("AutoencoderKL", "VQModel"):
        raise CheckpointError(f"no autoencoder of ldmkit is like {name}; AutoencoderKL and VQModel are read")
    _check_off(config, _AUTOENCODER_OFF, "autoencoder")
    bounded(config, ("layers_per_block",), "autoencoder")
    bounded({"levels": len(config["block_out_channels"])}, ("levels",), "autoencoder")
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise CheckpointError("an autoencoder with latents_mean and latents_std is not read")
    widths, down = list(config["block_out_channels"]), list(config["down_block_types"])
    if any(width % widths[0] for width in widths):
        raise CheckpointError(f"block_out_channels {widths} are no multiples of the first")
    grouped(widths, config.get("norm_num_groups", 32), "autoencoder")
    if unknown := sorted(set(down) - {"DownEncoderBlock2D", "AttnDownEncoderBlock2D"}):
        raise CheckpointError(f"autoencoder blocks {', '.join(unknown)} are not read")
    if config["in_channels"] != config["out_channels"]:
        raise CheckpointError("an autoencoder whose output has other channels than its input is not read")
    size = config.get("sample_size") or 256
    resolution = size if isinstance(size, int) and size >= 2 ** (len(down) - 1) else 256
    options: Json = {
        "type": "kl" if name == "AutoencoderKL" else "vq",
        "image_channels": config["in_channels"],
        "latent_channels": config["latent_channels"],
        "downsample": 2 ** (len(widths) - 1),
        "channels": widths[0],
        "multipliers": [width // widths[0] for width in widths],
        "blocks": config["layers_per_block"],
        "attention": [resolution // 2**i for i, block in enumerate(down) if "Attn" in block],
        "resolution": resolution,
        "middle_attention": config.get("mid_block_add_attention", True),
        "groups": config.get("norm_num_groups", 32),
    }
    if name == "VQModel":
        if (config.get("vq_embed_dim") or config["latent_channels"]) != config["latent_channels"]:
            raise CheckpointError("a VQModel whose vq_embed_dim differs from latent_channels is not read")
        options |= {"codebook": config["num_vq_embeddings"], "swapped": True}
    shift = config.get("shift_factor") or 0.0
    return options, float(config.get("scaling_factor", 0.18215) or 1.0), float(shift)


def _check_off(config: Mapping[str, Any], off: Mapping[str, Any], what: str) -> None:
    for name, value in off.items():
        given = config.get(name, value)
        if (
            given != value
            and not (value is None and given is False)
            and not (isinstance(given, list) and not any(given))
        ):
            raise CheckpointError(f"the {what}'s option {name}: {given!r} is not what ldmkit can represent")
