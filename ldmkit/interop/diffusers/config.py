"""diffusers' `config.json` files of UNets and autoencoders as ldmkit's options; what ldmkit does not have is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldmkit.denoiser.levels import multipliers_of, spread
from ldmkit.errors import CheckpointError
from ldmkit.interop.diffusers.defaults import complete
from ldmkit.interop.sanity import bounded, grouped

Json = dict[str, Any]

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
    "time_embedding_dim": None,
}
_PLAIN_OFF: Json = {"mid_block_type": "UNetMidBlock2D", "add_attention": True, "class_embed_type": None}
_CONDITION_OFF: Json = {
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_act_fn": None,
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
# What each block on the way down is called on the way up.
_UP = {
    "DownBlock2D": "UpBlock2D",
    "AttnDownBlock2D": "AttnUpBlock2D",
    "CrossAttnDownBlock2D": "CrossAttnUpBlock2D",
    "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D",
    "DownEncoderBlock2D": "UpDecoderBlock2D",
    "AttnDownEncoderBlock2D": "AttnUpDecoderBlock2D",
}
_RESNET = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")


def unet_from(config: Mapping[str, Any], where: str = "") -> Json:
    """`UNet.of_widths(**options)` of a UNet2DModel's or UNet2DConditionModel's config.

    Raises CheckpointError, naming the option, for a network that ldmkit does not have.
    """
    config = complete(config, where)
    name = config["_class_name"]
    if name not in ("UNet2DModel", "UNet2DConditionModel"):
        raise CheckpointError(f"ldmkit has no UNet like {name}; UNet2DModel and UNet2DConditionModel are supported")
    conditional = name == "UNet2DConditionModel"
    _check_off(config, {**_UNET_OFF, **(_CONDITION_OFF if conditional else _PLAIN_OFF)}, "UNet")
    bounded(
        config, ("layers_per_block", "transformer_layers_per_block") if conditional else ("layers_per_block",), "unet"
    )
    bounded({"levels": len(config["block_out_channels"])}, ("levels",), "unet")
    widths, down = list(config["block_out_channels"]), list(config["down_block_types"])
    grouped(widths, config["norm_num_groups"], "UNet")
    kinds = {"DownBlock2D", "CrossAttnDownBlock2D"} if conditional else {"DownBlock2D", "AttnDownBlock2D", _RESNET[0]}
    _check_blocks(config, kinds, "UNet")
    own = _condition_options(config, len(down)) if conditional else _plain_options(config)
    if config["resnet_time_scale_shift"] not in ("default", "scale_shift"):
        raise _unlike("UNet", "resnet_time_scale_shift", config["resnet_time_scale_shift"])
    variant = {
        "scale_shift": config["resnet_time_scale_shift"] == "scale_shift",
        "groups": config["norm_num_groups"],
        **own.pop("variant"),
    }
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "channels": widths[0],
        "multipliers": multipliers_of(widths),
        "attention": [2**i for i, block in enumerate(down) if "Attn" in block],
        "dropout": float(config["dropout"]),
        **own,
        "variant": variant,
    }


def _check_blocks(config: Mapping[str, Any], known: set[str], what: str) -> None:
    """That the blocks are known ones, and that the way up mirrors the way down."""
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    if unknown := sorted(set(down) - known):
        raise CheckpointError(f"{what} blocks {', '.join(unknown)} are not supported; {', '.join(sorted(known))} are")
    if up != [_UP[block] for block in reversed(down)]:
        raise CheckpointError(f"up_block_types {up} do not mirror down_block_types {down}, as a {what} of ldmkit does")
    if len(down) != len(config["block_out_channels"]):
        raise CheckpointError(f"the {what} has {len(down)} blocks and {len(config['block_out_channels'])} widths")


def _plain_options(config: Mapping[str, Any]) -> Json:
    head = config["attention_head_dim"]
    heads: Json = {"heads": 1} if head is None else {"head_width": head}
    if config["attn_norm_num_groups"] not in (None, config["norm_num_groups"]):
        raise _unlike("UNet", "attn_norm_num_groups", config["attn_norm_num_groups"])
    variant = {"resample_blocks": _resamples(config), "classes": config["num_class_embeds"]}
    return {
        "context_width": None,
        "blocks": config["layers_per_block"],
        "transformer_depth": 1,
        **heads,
        "variant": variant,
    }


def _resamples(config: Mapping[str, Any]) -> bool:
    """Whether residual blocks halve and double the size: at all levels, or at none."""

    def style(block: str, said: str) -> bool:
        return block in _RESNET or (said == "resnet" and "Attn" in block)

    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    found = {style(block, config["downsample_type"]) for block in down[:-1]}
    found |= {style(block, config["upsample_type"]) for block in up[:-1]}
    if len(found) > 1:
        raise CheckpointError("the UNet resamples by residual blocks at some levels and by convolutions at others")
    return found == {True}


def _condition_options(config: Mapping[str, Any], levels: int) -> Json:
    if not isinstance(config["cross_attention_dim"], int):
        raise CheckpointError("a cross_attention_dim per level is not supported")
    only = config["only_cross_attention"]
    only = [only] * levels if isinstance(only, bool) else list(only)
    attends = ["Attn" in block for block in config["down_block_types"]]
    width = _vector(config)
    variant = {
        "linear_projection": bool(config["use_linear_projection"]),
        "classes": config["num_class_embeds"] if width is None else None,
        "vector": width,
        "only_cross_attention": [2**i for i, (a, o) in enumerate(zip(attends, only, strict=True)) if a and o],
    }
    return {
        "context_width": config["cross_attention_dim"],
        "blocks": spread("layers_per_block", config["layers_per_block"], levels),
        "heads": spread("attention_head_dim", config["attention_head_dim"], levels),
        "transformer_depth": spread("transformer_layers_per_block", config["transformer_layers_per_block"], levels),
        "variant": variant,
    }


def _vector(config: Mapping[str, Any]) -> int | None:
    """Width of the vector that two layers of the UNet map to the time embedding (unCLIP, SDXL); None without."""
    kind, added = config["class_embed_type"], config["addition_embed_type"]
    if kind not in (None, "projection"):
        raise _unlike("UNet", "class_embed_type", kind)
    if added not in (None, "text_time"):
        raise _unlike("UNet", "addition_embed_type", added)
    if kind is not None and added is not None:
        raise CheckpointError(
            f"the UNet has class_embed_type {kind} and addition_embed_type {added}; one of them is read"
        )
    return None if kind is None and added is None else int(config["projection_class_embeddings_input_dim"])


def vector_layers(config: Mapping[str, Any], where: str = "") -> str:
    """What those two layers are called in the file."""
    full = complete(config, where)
    projects = full["_class_name"] == "UNet2DConditionModel" and full["class_embed_type"] == "projection"
    return "class_embedding." if projects else "add_embedding."


_KL_OFF: Json = {
    "act_fn": "silu",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "latents_mean": None,
    "latents_std": None,
}
_VQ_OFF: Json = {"act_fn": "silu", "norm_type": "group", "lookup_from_codebook": False}


def autoencoder_from(config: Mapping[str, Any], where: str = "") -> tuple[Json, float, float]:
    """(`make(**options)`, scale, shift) of an AutoencoderKL's or VQModel's config.

    Raises CheckpointError, naming the option, for a network that ldmkit does not have.
    """
    config = complete(config, where)
    name = config["_class_name"]
    if name not in ("AutoencoderKL", "VQModel"):
        raise CheckpointError(f"ldmkit has no autoencoder like {name}; AutoencoderKL and VQModel are supported")
    _check_off(config, _KL_OFF if name == "AutoencoderKL" else _VQ_OFF, "autoencoder")
    bounded(config, ("layers_per_block",), "autoencoder")
    bounded({"levels": len(config["block_out_channels"])}, ("levels",), "autoencoder")
    widths, down = list(config["block_out_channels"]), list(config["down_block_types"])
    grouped(widths, config["norm_num_groups"], "autoencoder")
    _check_blocks(config, {"DownEncoderBlock2D", "AttnDownEncoderBlock2D"}, "autoencoder")
    if config["in_channels"] != config["out_channels"]:
        raise CheckpointError("an autoencoder whose output has other channels than its input is not supported")
    size = config["sample_size"]  # where attention sits is counted at it, and any number that can be halved will do
    resolution = size if isinstance(size, int) and size >= 2 ** (len(down) - 1) else 256
    options: Json = {
        "type": "kl" if name == "AutoencoderKL" else "vq",
        "image_channels": config["in_channels"],
        "latent_channels": config["latent_channels"],
        "downsample": 2 ** (len(widths) - 1),
        "channels": widths[0],
        "multipliers": multipliers_of(widths),
        "blocks": config["layers_per_block"],
        "attention": [resolution // 2**i for i, block in enumerate(down) if "Attn" in block],
        "resolution": resolution,
        "middle_attention": bool(config["mid_block_add_attention"]),
        "groups": config["norm_num_groups"],
    }
    shift = 0.0
    if name == "VQModel":
        if config["vq_embed_dim"] not in (None, config["latent_channels"]):
            raise CheckpointError("a VQModel whose vq_embed_dim differs from latent_channels is not supported")
        options |= {"codebook": config["num_vq_embeddings"], "swapped": True}
    else:
        shift = float(config["shift_factor"] or 0.0)
    if not config["scaling_factor"]:
        raise CheckpointError(
            f"the autoencoder's scaling_factor is {config['scaling_factor']!r}: how its latents are scaled is not known",
            where=where or None,
            hint="write the factor that the UNet was trained with into config.json (1.0 for none)",
        )
    return options, float(config["scaling_factor"]), shift


def _unlike(what: str, name: str, value: Any) -> CheckpointError:
    return CheckpointError(f"the {what}'s option {name}: {value!r} is not what ldmkit can represent")


def _check_off(config: Mapping[str, Any], off: Mapping[str, Any], what: str) -> None:
    for name, value in off.items():
        given = config[name]
        empty = isinstance(given, list) and not any(given)
        if given != value and not (value is None and given is False) and not empty:
            raise _unlike(what, name, given)
