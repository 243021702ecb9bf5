"""Text stages of CompVis checkpoints: what they were, as options and weights of `TextConditioner`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldmkit.conditioning import ForeignStage
from ldmkit.errors import CheckpointError, OfflineError
from ldmkit_text.pretrained import PretrainedEncoder
from ldmkit_text.tokenizer import read_tokenizer
from ldmkit_text.transformer import HEAD_WIDTH

BOXES = ("coordinates_bbox", "objects_bbox", "objects_center_points")  # layouts go through the same network as text
BERT = "bert-base-uncased"
BERT_EMPTY = [101, 102]  # [CLS] [SEP]; padding is 0
CLIP = "openai/clip-vit-large-patch14"
CLIP_EMPTY = [49406] + [49407] * 76  # start, end, and padded with end

Found = tuple[dict[str, Any], dict[str, Tensor]]


def read_stage(stage: ForeignStage) -> Found | None:
    """Options and weights of `transformer`, or None where the stage holds no text."""
    name = stage.target.rpartition(".")[2]
    if name in ("BERTEmbedder", "TransformerEmbedder") and stage.key not in BOXES:
        return _from_scratch(stage, text=name == "BERTEmbedder" and stage.params.get("use_tokenizer", True))
    if name == "FrozenCLIPEmbedder":
        return _clip(stage)
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
    return options | (_tokenizer(BERT, length, BERT_EMPTY) if text else {}), tensors


def _clip(stage: ForeignStage) -> Found:
    tensors = _below("transformer.text_model.", stage.tensors, ignored=("embeddings.position_ids",))
    count, width = _shape(tensors, "embeddings.token_embedding.weight")
    length = int(stage.params.get("max_length", 77))
    architecture = {
        "model_type": "clip_text_model",
        "vocab_size": count,
        "hidden_size": width,
        "intermediate_size": _shape(tensors, "encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": sum(key.endswith(".mlp.fc1.weight") for key in tensors),
        "num_attention_heads": max(width // HEAD_WIDTH, 1),
        "max_position_embeddings": _shape(tensors, "embeddings.position_embedding.weight")[0],
        "hidden_act": "quick_gelu",
        "bos_token_id": 0,
        "eos_token_id": count - 1,
    }
    options = {"architecture": architecture, "length": length, "ids": count}
    # transformers 5 dropped the prefix `text_model.`; what the installed one expects is asked of an empty model
    expected = PretrainedEncoder(architecture).state_dict()
    prefix = "model.text_model." if any(key.startswith("model.text_model.") for key in expected) else "model."
    empty = [token for token in CLIP_EMPTY[:length] if token < count]
    return options | _tokenizer(CLIP, length, empty), {f"{prefix}{key}": value for key, value in tensors.items()}


def _tokenizer(name: str, length: int, empty: list[int]) -> dict[str, Any]:
    """The tokenizer is in no checkpoint: it comes from the hub or its cache, or the model reads ids alone."""
    try:
        return {"tokenizer": name, "vocabulary": read_tokenizer(name, length)}
    except OfflineError:
        warnings.warn(
            f"the tokenizer {name} could not be had, so this model reads token ids only; it is needed once, then kept",
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
