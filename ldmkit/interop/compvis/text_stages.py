"""The two text encoders that diffusers' pipelines hold, under the original's names.

`LDMBertModel` is the paper's own transformer; `CLIPTextModel` is the one of Stable Diffusion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Json = dict[str, Any]

_BERT_ATTENTION = {
    "0.weight": "self_attn_layer_norm.weight",
    "0.bias": "self_attn_layer_norm.bias",
    "1.to_q.weight": "self_attn.q_proj.weight",
    "1.to_k.weight": "self_attn.k_proj.weight",
    "1.to_v.weight": "self_attn.v_proj.weight",
    "1.to_out.weight": "self_attn.out_proj.weight",
    "1.to_out.bias": "self_attn.out_proj.bias",
}
_BERT_FEED = {
    "0.weight": "final_layer_norm.weight",
    "0.bias": "final_layer_norm.bias",
    "1.net.0.0.weight": "fc1.weight",
    "1.net.0.0.bias": "fc1.bias",
    "1.net.2.weight": "fc2.weight",
    "1.net.2.bias": "fc2.bias",
}
_BERT_ENDS = {
    "token_emb.weight": "model.embed_tokens.weight",
    "pos_emb.emb.weight": "model.embed_positions.weight",
    "norm.weight": "model.layer_norm.weight",
    "norm.bias": "model.layer_norm.bias",
}
OURS, CLIP = "transformer.", "transformer.text_model."


def _bert_names(depth: int) -> dict[str, str]:
    """The original's name -> LDMBertModel's."""
    names = {OURS + a: b for a, b in _BERT_ENDS.items()}
    for layer in range(depth):
        there = f"model.layers.{layer}."
        names |= {f"{OURS}attn_layers.layers.{2 * layer}.{a}": there + b for a, b in _BERT_ATTENTION.items()}
        names |= {f"{OURS}attn_layers.layers.{2 * layer + 1}.{a}": there + b for a, b in _BERT_FEED.items()}
    return names


def is_bert(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of the paper's text transformer, and nothing else."""
    depth = sum(name.endswith(".to_q.weight") for name in tensors)
    return depth > 0 and set(tensors) == set(_bert_names(depth))


def bert_to(tensors: Mapping[str, Tensor]) -> tuple[Json, dict[str, Tensor]]:
    """(config, tensors) of an LDMBertModel. Its head for language modelling, which no picture depends on, is zero."""
    depth = sum(name.endswith(".to_q.weight") for name in tensors)
    out = {theirs: tensors[ours] for ours, theirs in _bert_names(depth).items()}
    count, width = out["model.embed_tokens.weight"].shape
    config = {
        "architectures": ["LDMBertModel"],
        "model_type": "ldmbert",
        "vocab_size": count,
        "max_position_embeddings": out["model.embed_positions.weight"].shape[0],
        "encoder_layers": depth,
        "encoder_ffn_dim": out["model.layers.0.fc1.weight"].shape[0],
        "encoder_attention_heads": out["model.layers.0.self_attn.q_proj.weight"].shape[0] // 64,
        "head_dim": 64,
        "d_model": width,
        "activation_function": "gelu",
        "dropout": 0.0,
        "pad_token_id": 0,
    }
    head = {"to_logits.weight": torch.zeros(count, width), "to_logits.bias": torch.zeros(count)}
    return config, {**out, **head}


def bert_from(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LDMBertModel's tensors under the original's names; the language modelling head is left behind."""
    depth = sum(name.endswith("q_proj.weight") for name in tensors)
    back = {theirs: ours for ours, theirs in _bert_names(depth).items()}
    return {back.get(name, name): value for name, value in tensors.items() if not name.startswith("to_logits.")}


def clip_from(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIPTextModel's tensors under the original's names; newer files leave `text_model.` out."""
    kept = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
    return {CLIP + name.removeprefix("text_model."): value for name, value in kept.items()}


def clip_to(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """A conditioner's tensors as a CLIPTextModel's, with the long names every version reads; None where it holds no CLIP."""
    short = {re.sub(r"^transformer\.(model\.)?(text_model\.)?", "", name): value for name, value in tensors.items()}
    known = ("embeddings.", "encoder.layers.", "final_layer_norm.")
    if not all(name.startswith(known) for name in short) or "embeddings.token_embedding.weight" not in short:
        return None
    return {f"text_model.{name}": value for name, value in short.items() if not name.endswith("position_ids")}


def architecture_in(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The description of a pretrained text encoder among a conditioner's options; empty where there is none."""
    return next((value for value in options.values() if isinstance(value, Mapping) and "hidden_size" in value), {})


_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def open_clip_to(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIPTextModel's tensors as open_clip's, to be read before the last layer: that one, which nothing reads, is zero."""
    short = {name.removeprefix("text_model."): value for name, value in tensors.items()}
    out = {f"model.{theirs}": short[ours] for ours, theirs in _OPEN_CLIP_ENDS.items()}
    depth = sum(name.endswith("mlp.fc1.weight") for name in short)
    for layer in range(depth):
        ours, theirs = f"encoder.layers.{layer}.", f"model.transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            out |= {f"{theirs}{b}.{kind}": short[f"{ours}{a}.{kind}"] for a, b in _OPEN_CLIP_LAYER.items()}
            parts = [short[f"{ours}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            out[f"{theirs}attn.in_proj_{kind}"] = torch.cat(parts)
    first = "model.transformer.resblocks.0."
    unread = {name.removeprefix(first): value for name, value in out.items() if name.startswith(first)}
    out |= {f"model.transformer.resblocks.{depth}.{name}": torch.zeros_like(value) for name, value in unread.items()}
    width = out["model.ln_final.weight"].shape[0]
    return {**out, "model.text_projection": torch.zeros(width, width), "model.logit_scale": torch.zeros(())}
