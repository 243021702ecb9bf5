"""A prediction is pushed away from the prediction for another row's condition.

Stoica et al. 2025, "Contrastive Flow Matching" (arXiv 2506.05350), subtract the distance to another sample's target.
Here the distance is to what the network itself predicts of the same noisy latents under another row's condition, one slot at a
time, as MAISI-v2 (arXiv 2508.05772) does in a region: what the noisy latents and the other slots say already cancels in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.errors import RecipeError
from ldmkit.losses.base import DiffusionPass, DiffusionTerm
from ldmkit.plugins.ranges import Above


class Contrast(DiffusionTerm):
    """Conditions must make a difference: minus the distance to the prediction under another row's condition.

    Args:
        slots: slot -> lambda, how much it counts beside the stage's loss; together below 1. The paper's is 0.05.

    For the squared distance and lambda = weight x the slot's number, the loss ``|o - u|^2 - lambda |o - o'|^2`` of a prediction o
    with target u is least where ``o = m + (E[u|c] - m) / (1 - lambda)``, m the mean over conditions c: the effect of a condition
    grows by 1 / (1 - lambda), and one that says nothing stays at none. Costs one more forward pass a slot, without gradient.

    Raises RecipeError for no slot, a number that is not above 0, or a sum that is not below 1, where the loss has no least value.
    """

    def __init__(self, *, slots: dict[str, Above]) -> None:
        super().__init__()
        if not slots or any(not share > 0 for share in slots.values()) or sum(slots.values()) >= 1:
            raise RecipeError(
                f"slots is {slots}; it is a number above 0 for each slot, together below 1",
                hint="for example {text: 0.05}",
            )
        self.slots, self.shares = tuple(slots), dict(slots)

    def forward(self, given: DiffusionPass) -> Tensor:
        """(b,), at most 0; rows without a condition of their own, or without another's to compare with, count as 0."""
        total = torch.zeros_like(given.timesteps, dtype=torch.float32)
        for slot, share in self.shares.items():
            with torch.no_grad():
                other, moved = given.exchanged(slot)
                if not moved.any():
                    continue
                unlike = given.predict(other)
            distance = given.diffusion.distance(given.output.float(), unlike.float()).flatten(1).mean(1)
            total = total - share * distance * moved.to(distance.device)
        return total * given.diffusion.weights(given.timesteps)
