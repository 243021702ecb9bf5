"""ldmkit models as pipeline folders of diffusers, wherever a pipeline of theirs computes the same. diffusers is not needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmkit.autoencoder import Autoencoder
from ldmkit.conditioning import Conditioner
from ldmkit.denoiser.unet import UNet
from ldmkit.errors import LdmkitError
from ldmkit.interop.compvis import text_stages
from ldmkit.interop.diffusers import config as configs
from ldmkit.interop.diffusers import keys
from ldmkit.interop.diffusers.config import refuse
from ldmkit.interop.diffusers.folders import new_folder, write_json, write_tensors
from ldmkit.interop.diffusers.schedule import scheduler_to
from ldmkit.latent_diffusion import LatentDiffusion

VERSION = "0.42.1"  # of diffusers: what the folders were tried with
WEIGHTS = "diffusion_pytorch_model.safetensors"
# Kept by a codebook for its own training.
UPKEEP = ("quantize.count", "quantize.total", "quantize.idle", "quantize.steps")


def save_diffusers(model: LatentDiffusion, folder: str | Path) -> Path:
    """Writes a new folder that a pipeline of diffusers loads: which one follows from the model.

    No condition: LDMPipeline. A low-resolution picture on the latent grid: LDMSuperResolutionPipeline. Text through the
    paper's transformer: LDMTextToImagePipeline; through CLIP: StableDiffusionPipeline.

    Raises:
        UsageError: no pipeline of diffusers computes what this model does; the message says why.
        CheckpointError: the folder holds something already.
    """
    with new_folder(folder) as path:
        write_pipeline(model, path)
    return Path(folder)


def write_pipeline(model: LatentDiffusion, path: Path) -> str:
    """The files, into a directory that is there; the name of the pipeline."""
    name, slots = pipeline_of(model)
    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": VERSION}
    unet_class, _ = write_unet(model.denoiser, path / "unet", model.latent_shape(model.size)[1:])
    first = "vae" if name == "StableDiffusionPipeline" else "vqvae"
    index |= {
        "unet": ["diffusers", unet_class],
        first: ["diffusers", write_autoencoder(model.autoencoder, path / first)],
    }
    scheduler, config = scheduler_to(model.diffusion)
    write_json(path / "scheduler" / "scheduler_config.json", {"_class_name": scheduler, **_version(), **config})
    index |= {"scheduler": ["diffusers", scheduler], **slots.write(path)}
    write_json(path / "model_index.json", index)
    return name


def write_unet(unet: UNet, path: Path, grid: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """A UNet2DModel's or UNet2DConditionModel's folder; its class and config."""
    size = grid[0] if grid[0] == grid[1] else (grid[0], grid[1])
    name, config = configs.unet_to(unet, size)
    write_json(path / "config.json", {"_class_name": name, **_version(), **config})
    write_tensors(path / WEIGHTS, keys.export(keys.unet_rules(unet), unet.state_dict()))
    return name, config


def write_autoencoder(autoencoder: Autoencoder, path: Path) -> str:
    """An AutoencoderKL's or VQModel's folder; its class."""
    name, config = configs.autoencoder_to(autoencoder)
    state = autoencoder.state_dict()
    kept = {k: v for k, v in state.items() if not k.startswith(("latent_", *UPKEEP))}
    write_json(path / "config.json", {"_class_name": name, **_version(), **config})
    write_tensors(path / WEIGHTS, keys.export(keys.autoencoder_rules(autoencoder), kept))
    return name


def _version() -> dict[str, str]:
    return {"_diffusers_version": VERSION}


class Slots:
    """What a pipeline has beside UNet, autoencoder and scheduler: nothing, or a text encoder."""

    def write(self, path: Path) -> dict[str, Any]:
        """The files, and their entries in model_index.json."""
        return {}


class TextSlots(Slots):
    """A text encoder and its tokenizer."""

    def __init__(
        self, slot: str, library: list[str], config: dict[str, Any], tensors: dict[str, Tensor], text: str
    ) -> None:
        self.slot, self.library, self.config, self.tensors, self.tokenizer = slot, library, config, tensors, text

    def write(self, path: Path) -> dict[str, Any]:
        """text_encoder or bert, and tokenizer."""
        write_json(path / self.slot / "config.json", self.config)
        write_tensors(path / self.slot / "model.safetensors", self.tensors)
        write_tokenizer(path / "tokenizer", self.tokenizer, self.config["max_position_embeddings"])
        index: dict[str, Any] = {self.slot: self.library, "tokenizer": ["transformers", "PreTrainedTokenizerFast"]}
        if self.slot == "text_encoder":
            index |= {
                "safety_checker": [None, None],
                "feature_extractor": [None, None],
                "requires_safety_checker": False,
            }
        return index


def pipeline_of(model: LatentDiffusion) -> tuple[str, Slots]:
    """The pipeline that computes what the model does. Raises UsageError with the reason where there is none."""
    if len(model.conditioners) > 1:
        raise refuse(
            f"it has {len(model.conditioners)} conditions ({', '.join(model.conditioners)}), and no pipeline takes them"
        )
    if not model.conditioners:
        return "LDMPipeline", Slots()
    ((slot, conditioner),) = model.conditioners.items()
    emits = conditioner.emits
    if emits.vector:
        raise refuse(
            f"its condition {slot} is added to the time embedding, where no latent diffusion pipeline puts one"
        )
    if emits.concat and not emits.tokens:
        _check_picture(model, slot, conditioner)
        return "LDMSuperResolutionPipeline", Slots()
    if emits.concat:
        raise refuse(f"its condition {slot} comes by concat and by tokens, and no pipeline has both")
    return _text(model, slot, conditioner)


@torch.no_grad()
def _check_picture(model: LatentDiffusion, slot: str, conditioner: Conditioner) -> None:
    """That the condition is a picture of the latent grid's size, handed to the UNet as it is: tried, not asked."""
    channels, *grid = model.latent_shape(model.size)
    if conditioner.emits.concat != channels or channels != 3:
        raise refuse(
            f"its condition {slot} adds {conditioner.emits.concat} channels to a latent of {channels}; {NEEDS_PICTURE}"
        )
    if bool((model.autoencoder.latent_scale != 1).any()):
        raise refuse("its latents are scaled, which LDMSuperResolutionPipeline never does")
    picture = torch.rand(3, *grid, generator=torch.Generator().manual_seed(0)) * 2 - 1
    try:
        canvas = model.canvas()
        found = conditioner.encode(conditioner.collate([conditioner.from_user(picture, model.size)]), canvas).concat
    except (LdmkitError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise refuse(f"its condition {slot} takes no picture of the latent grid's size; {NEEDS_PICTURE}") from error
    if found is None or found.shape[1:] != picture.shape or not torch.equal(found[0].float(), picture):
        raise refuse(f"its condition {slot} is more than the picture itself; {NEEDS_PICTURE}")


NEEDS_PICTURE = (
    "the one pipeline with a concatenated condition takes an RGB picture as it is, beside a latent of three channels"
)


def _text(model: LatentDiffusion, slot: str, conditioner: Conditioner) -> tuple[str, Slots]:
    state = dict(conditioner.state_dict())
    options: Mapping[str, Any] = model.slots[slot].options if slot in model.slots else {}
    clip = text_stages.clip_to(state)
    if clip is None and not text_stages.is_bert(state):
        raise refuse(f"its condition {slot} is no text encoder that a pipeline has: the paper's transformer, or CLIP's")
    tokenizer = tokenizer_in(options)
    if tokenizer is None:
        raise refuse(f"its condition {slot} has no tokenizer, which the text pipelines need")
    _check_mask(model, slot, conditioner)
    if clip is not None:
        config = text_stages.architecture_in(options)
        if not config or model.autoencoder.config["type"] != "kl":
            raise refuse("StableDiffusionPipeline needs CLIP's configuration and a KL autoencoder")
        found = {**config, "architectures": ["CLIPTextModel"]}
        return "StableDiffusionPipeline", TextSlots(
            "text_encoder", ["transformers", "CLIPTextModel"], found, clip, tokenizer
        )
    if model.autoencoder.factor != 8:
        raise refuse(f"LDMTextToImagePipeline divides sizes by 8, and this autoencoder by {model.autoencoder.factor}")
    bert, tensors = text_stages.bert_to(state)
    if bert["max_position_embeddings"] != 77:
        raise refuse(f"LDMTextToImagePipeline pads to 77 tokens, and this model to {bert['max_position_embeddings']}")
    library = ["latent_diffusion", "LDMBertModel"]
    return "LDMTextToImagePipeline", TextSlots("bert", library, bert, tensors, tokenizer)


@torch.no_grad()
def _check_mask(model: LatentDiffusion, slot: str, conditioner: Conditioner) -> None:
    if conditioner.null(model.canvas()).mask is not None:
        raise refuse(f"its condition {slot} masks padding, and the text pipelines attend to it")


def tokenizer_in(options: Mapping[str, Any]) -> str | None:
    """The tokenizer among a conditioner's options: the JSON text of the `tokenizers` library."""
    for value in options.values():
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                found = json.loads(value)
            except ValueError:
                continue
            if isinstance(found, dict) and {"model", "added_tokens"} <= set(found):
                return value
    return None


def write_tokenizer(path: Path, text: str, length: int) -> None:
    """A tokenizer folder that `transformers` loads."""
    padding = json.loads(text).get("padding") or {}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "pad_token": padding.get("pad_token") or "[PAD]",
    }
    write_json(path / "tokenizer_config.json", config)
    (path / "tokenizer.json").write_text(text, encoding="utf-8")
