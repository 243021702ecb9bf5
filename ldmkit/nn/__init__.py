"""Blocks that networks are built from; the parameter names are those of the released checkpoints."""

from ldmkit.nn.attention import AttentionBlock, CrossAttention
from ldmkit.nn.embedding import timestep_embedding
from ldmkit.nn.layers import Context, Downsample, Stage, Stem, Upsample, group_norm, zeroed
from ldmkit.nn.residual import ResidualBlock
from ldmkit.nn.transformer import FeedForward, SpatialTransformer, TransformerBlock

__all__ = [
    "AttentionBlock",
    "Context",
    "CrossAttention",
    "Downsample",
    "FeedForward",
    "ResidualBlock",
    "SpatialTransformer",
    "Stage",
    "Stem",
    "TransformerBlock",
    "Upsample",
    "group_norm",
    "timestep_embedding",
    "zeroed",
]
