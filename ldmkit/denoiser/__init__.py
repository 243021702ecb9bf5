"""The denoiser's contract, and blocks that networks are built from, named as in the released checkpoints."""

from ldmkit.denoiser.attention import AttentionBlock, CrossAttention
from ldmkit.denoiser.base import Denoiser
from ldmkit.denoiser.embedding import timestep_embedding
from ldmkit.denoiser.layers import Context, Downsample, Stage, Stem, Upsample, group_norm, zeroed
from ldmkit.denoiser.residual import ResidualBlock
from ldmkit.denoiser.shortcut import LinearShortcut
from ldmkit.denoiser.transformer import FeedForward, SpatialTransformer, TransformerBlock

__all__ = [
    "AttentionBlock",
    "Context",
    "CrossAttention",
    "Denoiser",
    "Downsample",
    "FeedForward",
    "LinearShortcut",
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
