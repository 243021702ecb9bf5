"""What travels beside a model: the draws of a training step, and where a conditioner came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Every random number of one training step, row i keyed by (seed, purpose, positions[i])."""

    timesteps: Tensor  # (b,) in [0, T)
    noise: Tensor  # (b, c, h, w) epsilon
    posterior: Tensor  # (b, c, h, w) the autoencoder's own draw
    dropped: Mapping[str, Tensor]  # slot -> (b,) bool
    perturbation: Tensor | None = None  # (b, c, h, w) of input perturbation, where that is on

    def to(self, device: torch.device | str) -> Draws:
        """The same draws on `device`."""
        return Draws(
            self.timesteps.to(device),
            self.noise.to(device),
            self.posterior.to(device),
            {slot: value.to(device) for slot, value in self.dropped.items()},
            None if self.perturbation is None else self.perturbation.to(device),
        )


@dataclass(frozen=True)
class Slot:
    """Where a conditioner came from, for `config.json`: registered type, constructor options, the distribution that has it."""

    type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
