"""The text encoder of open_clip under the names of `transformers`' CLIP: one network, two layouts (Cherti et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ldmkit.errors import CheckpointError

# The projection to the space shared with pictures, its temperature, and a mask that is computed anew: no token depends on them.
UNUSED = ("text_projection", "logit_scale", "attn_mask", "visual.")
ENDS = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
IN_A_LAYER = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


def renamed(tensors: Mapping[str, Tensor], *, without_last: bool) -> dict[str, Tensor]:
    """open_clip's text tensors under CLIPTextModel's names, without prefix.

    without_last: leave out the last layer, so that the final norm follows the layer before it ("penultimate").

    Raises CheckpointError naming a tensor that has no place.
    """
    layers = {int(found[1]) for name in tensors if (found := LAYER.fullmatch(name))}
    last = max(layers, default=0) if without_last else -1
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        found = LAYER.fullmatch(name)
        if name in ENDS:
            out[ENDS[name]] = value
        elif found is not None and int(found[1]) == last:
            continue
        elif found is not None:
            out |= _layer(f"encoder.layers.{found[1]}.", found[2], value)
        elif not name.startswith(UNUSED):
            raise CheckpointError(f"the text encoder's {name} has no place in CLIP")
    return out


def _layer(prefix: str, name: str, value: Tensor) -> dict[str, Tensor]:
    """One tensor of a layer; query, key and value lie one after the other in one tensor there."""
    if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = name.rpartition("_")[2]
        parts = zip("qkv", value.chunk(3), strict=True)
        return {f"{prefix}self_attn.{letter}_proj.{kind}": part.clone() for letter, part in parts}
    for theirs, ours in IN_A_LAYER.items():
        if name.startswith(theirs):
            return {prefix + ours + name.removeprefix(theirs): value}
    raise CheckpointError(f"the text encoder's {name} has no place in a layer of CLIP")
