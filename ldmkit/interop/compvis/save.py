"""ldmkit models in the layout of the paper's code: `config.yaml` and `model.ckpt`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ldmkit.autoencoder import Autoencoder
from ldmkit.conditioning import Conditioner
from ldmkit.denoiser.levels import resolve_levels
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import UsageError
from ldmkit.interop.assembling import core_unet
from ldmkit.interop.compvis import text_stages
from ldmkit.interop.compvis.config import GROUPS, SCHEDULES, UNCONDITIONAL
from ldmkit.interop.compvis.reader import COND, FIRST, UNET, flat
from ldmkit.interop.diffusers.folders import new_folder
from ldmkit.interop.diffusers.save import UPKEEP, tokenizer_in
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.schedules import Schedule
from ldmkit.schedules.discrete import Discrete

Json = dict[str, Any]
LDM = "ldm.models.diffusion.ddpm.LatentDiffusion"
OPENAI = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
ENCODERS = "ldm.modules.encoders.modules."


def refuse(reason: str) -> UsageError:
    """The UsageError for what the original's code cannot represent."""
    return UsageError(f"the paper's code cannot represent this model: {reason}")


def save_compvis(model: LatentDiffusion, folder: str | Path, raw: Mapping[str, Tensor] | None = None) -> Path:
    """Writes a new folder with `config.yaml` and `model.ckpt` that the original's code, and `load_compvis`, read.

    `raw`: the denoiser before averaging, as ``denoiser.*``; the model's own weights are then stored as the average.

    Raises:
        UsageError: the original has no such model; the message says why.
        CheckpointError: the folder holds something already.
    """
    config, tensors = compvis_of(model, raw)
    with new_folder(folder) as path:
        (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        # What the original reads is a pickle; this one holds a dict of tensors and nothing else.
        torch.save({"state_dict": tensors}, path / "model.ckpt")
    return Path(folder)


def compvis_of(model: LatentDiffusion, raw: Mapping[str, Tensor] | None = None) -> tuple[Json, dict[str, Tensor]]:
    """The original's configuration and state dict of a model."""
    unet, grid = core_unet(model, refuse), _square(model)
    params, tensors = _process(model.diffusion.config, model.diffusion.schedule)
    params |= {
        "image_size": grid[1],
        "channels": grid[0],
        "first_stage_key": "image",
        "scale_factor": _scale(model.autoencoder),
    }
    params |= {"use_ema": raw is not None, "unet_config": _unet(unet)}
    params["first_stage_config"] = _first_stage(model.autoencoder)
    averaged = {name: value.detach() for name, value in unet.state_dict().items()}
    if raw is None:
        tensors |= {UNET + name: value for name, value in averaged.items()}
    else:
        tensors |= {flat(f"diffusion_model.{name}"): value for name, value in averaged.items()}
        tensors |= {UNET + name: raw.get(f"denoiser.{name}", value) for name, value in averaged.items()}
    own = {k: v for k, v in model.autoencoder.state_dict().items() if not k.startswith(("latent_", *UPKEEP))}
    tensors |= {FIRST + name: value for name, value in own.items()}
    if (logvar := model.diffusion.logvar) is not None:
        tensors["logvar"] = logvar.detach()
    stage, stage_tensors = _condition(model)
    tensors |= {COND + name: value for name, value in stage_tensors.items()}
    config = {"model": {"base_learning_rate": 1.0e-06, "target": LDM, "params": {**params, **stage}}}
    return config, {name: value.clone().contiguous() for name, value in tensors.items()}


def check_compvis(model: LatentDiffusion) -> None:
    """Raises UsageError with the reason where the original's layout cannot hold the model, which may be on meta."""
    unet = core_unet(model, refuse)
    _square(model)
    _process(model.diffusion.config, model.diffusion.schedule)
    _scale(model.autoencoder)
    _unet(unet)
    _first_stage(model.autoencoder)
    _condition(model)


def _square(model: LatentDiffusion) -> tuple[int, ...]:
    """The latent's shape."""
    grid = model.latent_shape(model.size)
    if grid[1] != grid[2]:
        raise refuse(f"its training images are {model.size[0]} x {model.size[1]}; the original's are square")
    return grid


def _process(config: Mapping[str, Any], schedule: Schedule) -> tuple[Json, dict[str, Tensor]]:
    back = {ours: theirs for theirs, ours in SCHEDULES.items()}
    found = schedule.config
    if not isinstance(schedule, Discrete):
        raise refuse(f"its schedule ({found['type']}) is not a table of betas")
    if config["prediction"] not in ("eps", "x0", "v"):
        raise refuse(f"it predicts {config['prediction']}")
    loss = config["loss"]["type"] if isinstance(config["loss"], Mapping) else config["loss"]
    params: Json = {"timesteps": schedule.timesteps, "loss_type": loss if loss in ("l1", "l2") else "l2"}
    params |= {"parameterization": config["prediction"], "learn_logvar": config["learn_logvar"]}
    if found["type"] not in back or found.get("zero_snr") or found.get("shift", 1.0) != 1.0:
        params["given_betas"] = schedule.betas.tolist()
    elif found["type"] == "cosine":
        params |= {"beta_schedule": "cosine", "cosine_s": found["offset"]}
    else:
        params |= {"beta_schedule": back[found["type"]], "linear_start": found["start"], "linear_end": found["end"]}
    buffers = {"betas": schedule.betas.float(), "alphas_cumprod": schedule.alphas_cumprod.float()}
    return params, buffers


def _scale(autoencoder: Autoencoder) -> float:
    scales = set(autoencoder.latent_scale.tolist())
    if len(scales) > 1 or bool(autoencoder.latent_shift.any()):
        raise refuse("its latents have a scale or shift of their own in each channel")
    return float(scales.pop())


def _check_groups(module: nn.Module, what: str) -> None:
    counts = {norm.num_groups for norm in module.modules() if isinstance(norm, nn.GroupNorm)}
    if counts - {GROUPS}:
        raise refuse(
            f"its {what}'s group norms have {', '.join(map(str, sorted(counts)))} groups; the original's have {GROUPS}"
        )


def _unet(unet: UNet) -> Json:
    _check_groups(unet, "UNet")
    config, variant, levels = unet.config, unet.variant, resolve_levels(unet.config)
    if variant.plain_attention:
        raise refuse("its UNet has plain attention beside its transformers")
    if config["shortcut"]:
        raise refuse("its UNet has a linear shortcut (denoiser.shortcut)")
    if variant.vector is not None:
        raise refuse("its UNet maps a vector to the time embedding, for which the paper's code has no condition")
    if variant.time is not None:
        raise refuse("its UNet embeds something other than the timestep")
    attending = [level for i, level in enumerate(levels) if level.attends or i == len(levels) - 1]
    counts, widths = {level.heads for level in attending}, {level.width // level.heads for level in attending}
    if len(counts) > 1 and len(widths) > 1:
        raise refuse("its attention has neither one number of heads nor one width of head")
    heads = {"num_heads": counts.pop()} if len(counts) == 1 else {"num_head_channels": widths.pop()}
    depths = {level.depth for level in levels}
    transformer = unet.context_width is not None or variant.self_transformer
    params: Json = {
        "image_size": 32,  # not used
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": config["channels"],
        "attention_resolutions": list(config["attention"]),
        "num_res_blocks": config["blocks"],
        "channel_mult": list(config["multipliers"]),
        "dropout": config["dropout"],
        **heads,
        "use_scale_shift_norm": variant.scale_shift,
        "resblock_updown": variant.resample_blocks,
        "legacy": False,
    }
    if transformer:
        params |= {"use_spatial_transformer": True, "context_dim": unet.context_width}
        params["transformer_depth"] = depths.pop() if len(depths) == 1 else [level.depth for level in levels]
    if variant.linear_projection:
        params["use_linear_in_transformer"] = True
    if variant.only_cross_attention:
        params["disable_self_attentions"] = [level.only_cross for level in levels]
    if variant.classes is not None:
        params["num_classes"] = variant.classes
    return {"target": OPENAI, "params": params}


def _first_stage(autoencoder: Autoencoder) -> Json:
    config = autoencoder.config
    if config["type"] == "identity":
        return {"target": "ldm.models.autoencoder.IdentityFirstStage", "params": {}}
    _check_groups(autoencoder, "autoencoder")
    if config["middle_attention"] not in (True, False):
        raise refuse(f"its autoencoder attends only in the middle of the {config['middle_attention']}")
    if not isinstance(config["blocks"], int):
        raise refuse("its autoencoder has different numbers of blocks at different levels")
    if config["attention"] and not config["middle_attention"]:
        raise refuse("its autoencoder attends at some levels and not in the middle")
    if config["shortcut"]:
        raise refuse("its autoencoder has a linear shortcut")
    kind = config["type"]
    network: Json = {
        "double_z": kind == "kl",
        "z_channels": config["latent_channels"],
        "resolution": config["resolution"],
        "in_channels": config["image_channels"],
        "out_ch": config["image_channels"],
        "ch": config["channels"],
        "ch_mult": list(config["multipliers"]),
        "num_res_blocks": config["blocks"],
        "attn_resolutions": list(config["attention"]),
        "dropout": config["dropout"],
        "attn_type": config["attention_type"] if config["middle_attention"] else "none",
    }
    params: Json = {
        "embed_dim": config["latent_channels"],
        "ddconfig": network,
        "lossconfig": {"target": "torch.nn.Identity"},
    }
    if kind == "vq":
        params["n_embed"] = config["codebook"]
    return {
        "target": f"ldm.models.autoencoder.{'VQModelInterface' if kind == 'vq' else 'AutoencoderKL'}",
        "params": params,
    }


def _condition(model: LatentDiffusion) -> tuple[Json, dict[str, Tensor]]:
    if not model.conditioners:
        return {"cond_stage_config": UNCONDITIONAL}, {}
    if len(model.conditioners) > 1:
        raise refuse(f"it has {len(model.conditioners)} conditions; the original's code has one")
    ((slot, conditioner),) = model.conditioners.items()
    if conditioner.emits.vector or (conditioner.emits.tokens and conditioner.emits.concat):
        raise refuse(f"its condition {slot} uses a port that the original does not have")
    options = model.slots[slot].options if slot in model.slots else {}
    key, target, params, tensors = _stage(model, slot, conditioner, options)
    stage: Json = {"cond_stage_key": key, "cond_stage_trainable": bool(tensors)}
    stage["conditioning_key"] = "crossattn" if conditioner.emits.tokens else "concat"
    return {**stage, "cond_stage_config": {"target": target, "params": params}}, tensors


def _stage(
    model: LatentDiffusion, slot: str, conditioner: Conditioner, options: Mapping[str, Any]
) -> tuple[str, str, Json, dict[str, Tensor]]:
    """(key, target, params, tensors) of the original's stage with these weights: told by what the weights are called."""
    state = {name: value.detach() for name, value in conditioner.state_dict().items()}
    emits = conditioner.emits
    if not state and emits.concat == model.autoencoder.image_channels:
        return "LR_image", "torch.nn.Identity", {}, {}
    if set(state) == {"embedding.weight"} and emits.length == 1:
        if frozenset({slot}) not in model.conditioners.dropout.trained:  # its last row, "no class", was never trained
            state = {"embedding.weight": state["embedding.weight"][:-1]}
        rows, width = state["embedding.weight"].shape
        params = {"embed_dim": width, "n_classes": rows, "key": "class_label"}
        return "class_label", f"{ENCODERS}ClassEmbedder", params, state
    if "channel_mapper.weight" in state and emits.concat:
        weight = state["channel_mapper.weight"]
        stages = int(math.log2(model.autoencoder.factor))
        params = {"n_stages": stages, "in_channels": weight.shape[1], "out_channels": weight.shape[0]}
        return "segmentation", f"{ENCODERS}SpatialRescaler", params, {"channel_mapper.weight": weight}
    if text_stages.is_bert(state):
        bert, _ = text_stages.bert_to(state)
        params = {"n_embed": bert["d_model"], "n_layer": bert["encoder_layers"], "vocab_size": bert["vocab_size"]}
        params |= {"max_seq_len": bert["max_position_embeddings"], "use_tokenizer": tokenizer_in(options) is not None}
        return "caption", f"{ENCODERS}BERTEmbedder", params, state
    if (clip := text_stages.clip_to(state)) is not None:
        return ("caption", *_clip(slot, clip, text_stages.architecture_in(options), emits.length))
    raise refuse(f"its condition {slot} has no counterpart in the original's code")


def _clip(
    slot: str, tensors: Mapping[str, Tensor], described: Mapping[str, Any], length: int
) -> tuple[str, Json, dict[str, Tensor]]:
    """(target, params, tensors) of Stable Diffusion 1's text encoder, or of 2's, which differ in what no tensor shows."""
    width = tensors["text_model.embeddings.token_embedding.weight"].shape[1]
    act = described.get("hidden_act")
    if described.get("num_attention_heads") != width // 64 or described.get("layer_norm_eps", 1e-5) != 1e-5:
        raise refuse(f"the text encoder of {slot} has other heads or norms than CLIP")
    if act == "quick_gelu":
        found = {f"transformer.{name}": value for name, value in tensors.items()}
        return f"{ENCODERS}FrozenCLIPEmbedder", {"max_length": length}, found
    if act == "gelu":
        params = {"freeze": True, "layer": "penultimate", "max_length": length}
        return f"{ENCODERS}FrozenOpenCLIPEmbedder", params, text_stages.open_clip_to(tensors)
    raise refuse(f"the text encoder of {slot} has {act} between its layers, and CLIP's have quick_gelu or gelu")
