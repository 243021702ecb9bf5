"""Which slots a pipeline folder of diffusers has: its text encoder, its classes, and what else its UNet reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ldmkit.conditioning import ForeignStage
from ldmkit.errors import CheckpointError
from ldmkit.interop import foreign
from ldmkit.interop.compvis import text_stages
from ldmkit.interop.diffusers.component import Component
from ldmkit.plugins import Registry

SUPER_RESOLUTION = "LDMSuperResolutionPipeline"


@dataclass(frozen=True)
class Widths:
    """What the UNet of the folder reads beside the noisy latent."""

    tokens: int
    concat: int
    vector: int
    table: Tensor | None  # rows of its class embedding

    @property
    def classes(self) -> bool:
        """Whether it has a table of classes."""
        return self.table is not None


def slots(folder: Path, pipeline: str, widths: Widths, factor: int, registry: Registry) -> list[foreign.Found]:
    """The slots of a pipeline; what no installed plugin reads takes tensors, one slot a port. `factor`: the autoencoder's.

    Raises CheckpointError for a text encoder whose width the UNet does not read.
    """
    found: list[foreign.Found] = []
    if widths.tokens:
        found.append(_text(folder, pipeline, widths.tokens, registry))
    if pipeline == SUPER_RESOLUTION and widths.concat:
        stage = ForeignStage("torch.nn.Identity", {"scale": factor}, "LR_image", "concat", widths.concat)
        found.append(foreign.find(stage, registry) or foreign.stand_in(stage, registry=registry))
    elif widths.concat:
        found.append(foreign.beside_latent(pipeline, widths.concat, registry))
    if widths.table is not None:
        found.append(foreign.class_table(widths.table, "noise_level" if "Upscale" in pipeline else "class", registry))
    if widths.vector:
        stage = ForeignStage(pipeline, {}, "vector", "vector", 0)
        found.append(foreign.stand_in(stage, vector=widths.vector, registry=registry))
    return found


def _text(folder: Path, pipeline: str, width: int, registry: Registry) -> foreign.Found:
    stage = text_stage(folder) or ForeignStage(pipeline, {}, "condition", "tokens", 0)
    found = foreign.find(stage, registry)
    if found is None:
        length = int(stage.params.get("max_length", 77))  # every CLIP has 77; of another encoder it is a limit alone
        return foreign.stand_in(replace(stage, channels=0), tokens=width, length=length, registry=registry)
    _check_architecture(stage.params.get("architecture", {}), found)
    if (given := found.conditioner.emits.tokens) != width:
        raise CheckpointError(
            f"the UNet reads tokens of width {width} (cross_attention_dim), and the text encoder gives {given}",
            where=str(folder),
        )
    return found


def text_stage(folder: Path) -> ForeignStage | None:
    """The one text encoder of the pipeline, described as the original's; None where there is none, or there are two."""
    names = [name for name in ("text_encoder", "text_encoder_2", "bert") if (folder / name / "config.json").is_file()]
    if len(names) != 1:
        return None
    encoder = Component.of(folder / names[0])
    tokenizer = folder / "tokenizer"
    params = {
        "max_length": int(encoder.config.get("max_position_embeddings") or 77),
        "architecture": encoder.config,
        **({"tokenizer": str(tokenizer)} if tokenizer.is_dir() else {}),
    }
    kind = (encoder.config.get("architectures") or [""])[0]
    if kind == "LDMBertModel":
        tensors = text_stages.bert_from(encoder.tensors())
        return ForeignStage("ldm.modules.encoders.modules.BERTEmbedder", params, "caption", "tokens", 0, tensors)
    if kind == "CLIPTextModel":
        params["architecture"] = {**UNSEEN, **encoder.config}
        tensors = text_stages.clip_from(encoder.tensors())
        return ForeignStage("ldm.modules.encoders.modules.FrozenCLIPEmbedder", params, "caption", "tokens", 0, tensors)
    return ForeignStage(kind, params, "caption", "tokens", 0)


# Of a text encoder: no tensor's shape tells them, and other values are other numbers. Value: the default of CLIPTextConfig in
# transformers, and of LDMBertConfig in diffusers.
UNSEEN: dict[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 8}
UNSEEN_LDM_BERT: dict[str, Any] = {"head_dim": 64, "activation_function": "gelu", "scale_embedding": False}


def _check_architecture(wanted: Mapping[str, Any], found: foreign.Found) -> None:
    """That the conditioner built the text encoder which the folder describes."""
    if wanted.get("model_type") == "ldmbert":
        got, unseen = UNSEEN_LDM_BERT, UNSEEN_LDM_BERT
    else:
        values = found.slot.options.values()
        got = next((dict(value) for value in values if isinstance(value, Mapping) and "hidden_size" in value), {})
        unseen = UNSEEN if got else {}
    for name, default in unseen.items():
        if (theirs := wanted.get(name, default)) != (ours := got.get(name, default)):
            raise CheckpointError(
                f"the text encoder has {name} {theirs!r}, and {found.slot.type} reads it with {ours!r}",
                hint="a newer version of the plugin may know this encoder",
            )
