"""What travels beside a model: the draws of a training step, and where a conditioner came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from ldmkit.errors import CheckpointError


@dataclass(frozen=True)
class Draws:
    """Every random number of one training step, row i keyed by (seed, purpose, positions[i])."""

    timesteps: Tensor  # (b,) in [0, T)
    noise: Tensor  # (b, c, h, w) epsilon
    posterior: Tensor  # (b, c, h, w) the autoencoder's own draw
    dropped: Mapping[str, Tensor]  # slot -> (b,) bool, on the CPU
    perturbation: Tensor | None = None  # (b, c, h, w) of input perturbation, where that is on

    def to(self, device: torch.device | str) -> Draws:
        """The same draws on `device`; what is dropped stays on the CPU, where it is decided what is encoded."""
        return Draws(
            self.timesteps.to(device),
            self.noise.to(device),
            self.posterior.to(device),
            self.dropped,
            None if self.perturbation is None else self.perturbation.to(device),
        )


@dataclass(frozen=True)
class Slot:
    """Where a conditioner came from, for `config.json`: registered type, constructor options, the distribution that has it."""

    type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    # Option that `fit` learned from data -> sha256 of its value.
    fitted: Mapping[str, str] = field(default_factory=dict)
    # Field -> what the data source knows of it.
    known: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def plugin(self) -> str:
        """Where it is from, in words: ``ldmkit-depth 1.2``, a file, or nothing where that is not known."""
        version = self.origin.get("version")
        named = self.origin.get("distribution") or self.origin.get("file") or self.origin.get("entry_point") or ""
        return f"{named} {version}" if named and version else str(named)

    @property
    def hash(self) -> str:
        """sha256 of type, options (those learned from data among them) and fields."""
        return digest({"type": self.type, "options": dict(self.options), "fields": dict(self.fields)})

    def with_fitted(self, learned: Mapping[str, Any]) -> Self:
        """The slot, telling which of its options were learned from the data."""
        return replace(self, fitted={name: digest(value) for name, value in learned.items()})

    def to_json(self) -> dict[str, Any]:
        """What `config.json` says of the slot."""
        return {**{key: value for key, value in vars(self).items() if key != "known" or value}, "hash": self.hash}

    @classmethod
    def read(cls, name: str, described: Mapping[str, Any]) -> Self:
        """The slot `name` of a `config.json`. Raises `CheckpointError` where its options are not those it was saved with."""
        slot = cls(**{key: value for key, value in described.items() if key != "hash"})
        if described.get("hash") not in (None, slot.hash):
            raise CheckpointError(
                f"the options of slot {name} are not those the model was trained with: their hash is {slot.hash[:12]}, "
                f"and {str(described['hash'])[:12]} was saved",
                hint="what was learned from the data (classes, vocabulary) belongs to the weights: restore config.json",
            )
        return slot


def digest(value: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
