"""What the released configurations say wrongly, or do not say: facts about single models.

The code that trained three of the models ignored `num_head_channels` in transformers and had one head; today's original reads
the same YAML as 32 wide heads. No tensor's shape tells the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldmkit.interop.compvis.defaults import UNET


@dataclass(frozen=True)
class WrongHeads:
    """A released model whose YAML says `num_head_channels: 32` where its weights have one head."""

    name: str
    channels: int
    multipliers: tuple[int, ...]
    context: int
    depth: int
    parameters: int  # of the UNet


WRONG_HEADS = (
    WrongHeads("cin256 (class-conditional, f8)", 256, (1, 2, 4), 512, 1, 394_984_196),
    WrongHeads("text2img256", 192, (1, 2, 3, 5), 640, 1, 403_623_939),
    WrongHeads("layout2img-openimages256", 128, (1, 2, 3, 4), 512, 3, 246_277_379),
)


def wrong_heads(params: Mapping[str, Any], parameters: int) -> WrongHeads | None:
    """The released model that this `unet_config` and number of UNet parameters are, if its YAML is wrong about heads."""
    said = {**UNET, **params}
    if said["num_head_channels"] != 32 or said["num_heads"] != -1:
        return None
    names = ("channel_mult", "context_dim", "transformer_depth")
    multipliers, context, depth = (said[name] for name in names)
    found: tuple[Any, ...] = (said.get("model_channels"), tuple(multipliers), context, depth, parameters)
    known: dict[tuple[Any, ...], WrongHeads] = {
        (m.channels, m.multipliers, m.context, m.depth, m.parameters): m for m in WRONG_HEADS
    }
    return known.get(found)


def counts_classes(stage: str, params: Mapping[str, Any]) -> bool:
    """Whether a conditioning stage is a table of classes; how many may be left out of its YAML (then 1000)."""
    return "n_classes" in params or stage == "ClassEmbedder"


def null_row(params: Mapping[str, Any]) -> int | None:
    """The row that stands for no class in a table of ImageNet's classes and one more (cin256-v2)."""
    return 1000 if params.get("n_classes") == 1001 else None
