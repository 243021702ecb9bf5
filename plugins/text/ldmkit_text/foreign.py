"""Text stages of foreign checkpoints: what they were, as options and weights of `TextConditioner`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldmkit.conditioning import ForeignStage
from ldmkit.errors import CheckpointError, LdmkitError
from ldmkit_text.open_clip import renamed
from ldmkit_text.pretrained import PretrainedEncoder
from ldmkit_text.tokenizer import read_tokenizer
from ldmkit_text.transformer import HEAD_WIDTH

BOXES = ("coordinates_bbox", "objects_bbox", "objects_center_points")  # layouts go through the same network as text
BERT = "bert-base-uncased"
BERT_EMPTY = [101, 102]  # [CLS] [SEP]; padding is 0
CLIP = "openai/clip-vit-large-patch14"
CLIP_START, CLIP_END = 49406, 49407
# What no tensor's shape tells of a CLIP text encoder: taken from its description, where there is one.
UNSEEN = ("hidden_act", "layer_norm_eps", "num_attention_heads", "bos_token_id", "eos_token_id", "pad_token_id")

Found = tuple[dict[str, Any], dict[str, Tensor]]


def read_stage(stage: ForeignStage) -> Found | None:
    """Options and weights of `transformer`, or None where the stage holds no text.

    `stage.params` may hold a `tokenizer` (its directory) and an `architecture` (what `config.json` says of the encoder), which
    stand for what the checkpoints of the paper's code leave to the hub. Raises CheckpointError where a tensor is
    missing, or has no place in the transformer.
    """
    name = stage.target.rpartition(".")[2]
    if name in ("BERTEmbedder", "TransformerEmbedder") and stage.key not in BOXES:
        return _from_scratch(stage, text=name == "BERTEmbedder" and stage.params.get("use_tokenizer", True))
    if name == "FrozenCLIPEmbedder":
        return _clip(stage)
    if name == "FrozenOpenCLIPEmbedder":
        return _open_clip(stage)
    return None


def _from_scratch(stage: ForeignStage, text: bool) -> Found:
    # `to_logits` belongs to the language model the code was made for; no image ever saw it.
    tensors = _below("transformer.", stage.tensors, ignored=("to_logits.",))
    count, width = _shape(tensors, "token_emb.weight")
    length = _shape(tensors, "pos_emb.emb.weight")[0]
    options: dict[str, Any] = {
        "length": length,
        "width": width,
        "depth": sum(key.endswith(".to_q.weight") for key in tensors),
        "heads": _shape(tensors, "attn_layers.layers.0.1.to_q.weight")[0] // HEAD_WIDTH,
        "ids": count,
    }
    return options | (_tokenizer(stage, BERT, length, BERT_EMPTY) if text else {}), tensors


def _clip(stage: ForeignStage) -> Found:
    tensors = _below("transformer.text_model.", stage.tensors, ignored=("embeddings.position_ids",))
    length = int(stage.params.get("max_length", 77))
    empty = [CLIP_START] + [CLIP_END] * (length - 1)  # padded with the end
    return _pretrained(stage, tensors, length, empty, pad=None, act="quick_gelu")


def _open_clip(stage: ForeignStage) -> Found:
    """Stable Diffusion 2's: the same network under other names, read before its last layer, and padded with id 0."""
    layer = stage.params.get("layer", "last")
    if layer not in ("last", "penultimate"):
        raise CheckpointError(f"the text encoder is read at its {layer!r} layer; last and penultimate are known")
    tensors = renamed(_below("model.", stage.tensors, ignored=()), without_last=layer == "penultimate")
    length = int(stage.params.get("max_length", 77))
    return _pretrained(stage, tensors, length, [CLIP_START, CLIP_END], pad="!", act="gelu")


def _pretrained(
    stage: ForeignStage, tensors: dict[str, Tensor], length: int, empty: list[int], *, pad: str | None, act: str
) -> Found:
    """A CLIP text encoder, its tensors named without a prefix. Every size is read off the tensors."""
    count, width = _shape(tensors, "embeddings.token_embedding.weight")
    said = {key: value for key, value in stage.params.get("architecture", {}).items() if key in UNSEEN}
    architecture = {
        "model_type": "clip_text_model",
        "vocab_size": count,
        "hidden_size": width,
        "intermediate_size": _shape(tensors, "encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": sum(key.endswith(".mlp.fc1.weight") for key in tensors),
        "num_attention_heads": max(width // HEAD_WIDTH, 1),
        "max_position_embeddings": _shape(tensors, "embeddings.position_embedding.weight")[0],
        "hidden_act": act,
        "bos_token_id": 0,
        "eos_token_id": count - 1,
        **{key: value for key, value in said.items() if value is not None},
    }
    options = {"architecture": architecture, "length": length, "ids": count}
    # transformers 5 dropped the prefix `text_model.`; what the installed one expects is asked of an empty model
    expected = PretrainedEncoder(architecture).state_dict()
    prefix = "model.text_model." if any(key.startswith("model.text_model.") for key in expected) else "model."
    known = [token for token in empty[:length] if token < count]
    found = {f"{prefix}{key}": value for key, value in tensors.items()}
    return options | _tokenizer(stage, CLIP, length, known, pad), found


def _tokenizer(stage: ForeignStage, name: str, length: int, empty: list[int], pad: str | None = None) -> dict[str, Any]:
    """The tokenizer beside the encoder; else that of the hub or its cache; else the model reads ids alone."""
    beside = stage.params.get("tokenizer")
    try:
        if beside is not None:
            return {"vocabulary": read_tokenizer(str(beside), length)}
        return {"tokenizer": name, "vocabulary": read_tokenizer(name, length, pad)}
    except LdmkitError as error:
        warnings.warn(
            f"the tokenizer {beside or name} could not be had, so this model reads token ids only; "
            + (error.message if beside else "it is needed once, then kept"),
            stacklevel=2,
        )
        return {"empty": empty}


def _below(prefix: str, tensors: Mapping[str, Tensor], ignored: tuple[str, ...]) -> dict[str, Tensor]:
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return {key: value for key, value in own.items() if not key.startswith(ignored)}


def _shape(tensors: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in tensors:
        raise CheckpointError(f"the text encoder's {key} is not in the checkpoint")
    return tuple(tensors[key].shape)
