"""Extra terms of a stage's loss: the contracts, and what a term is given."""

from ldmkit.losses.base import AutoencoderPass, AutoencoderTerm, DiffusionPass, DiffusionTerm, Loss
from ldmkit.losses.extra import ExtraLosses

__all__ = ["AutoencoderPass", "AutoencoderTerm", "DiffusionPass", "DiffusionTerm", "ExtraLosses", "Loss"]
