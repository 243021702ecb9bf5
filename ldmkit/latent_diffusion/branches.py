"""The branches of guidance: which subsets of the conditions a sampling asks for, and what the denoiser reads in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from ldmkit import guidance as guiding
from ldmkit.conditioning import Batch, Canvas, Conditioning, DroppedSlots, KeptSlots, Tensors
from ldmkit.diffusion import X0Predictor
from ldmkit.errors import UsageError
from ldmkit.guidance import Guidance
from ldmkit.latent_diffusion import autoguidance_model
from ldmkit.latent_diffusion.networks import Networks


class Branches:
    """Subsets of a batch's conditions, each encoded once.

    A slot without a value is null in every branch; with `stand_in` (slot -> prepared tensors) a slot's null is that value.
    Raises UsageError where a subset is asked for that training never showed.
    """

    def __init__(self, model: Networks, batch: Batch, canvas: Canvas, stand_in: Mapping[str, Tensors]) -> None:
        self.model, self.batch, self.canvas, self.stand_in = model, batch, canvas, stand_in
        self.present: KeptSlots = frozenset(slot for slot in model.conditioners if bool(batch.present[slot].any()))
        self._check_absent(model)
        self.trained = self._trained()
        self._read: dict[KeptSlots, Conditioning] = {}

    def read(self, kept: KeptSlots) -> Conditioning:
        """What the denoiser reads with the slots `kept`, the others null."""
        if kept not in self._read:
            self._read[kept] = self.model.branch(self.batch, self.canvas, kept, self.stand_in)
        return self._read[kept]

    def weights(self, guidance: Guidance) -> dict[KeptSlots, float]:
        """The weight of each branch in the guided prediction; they sum to one."""
        merged: dict[KeptSlots, float] = {}
        for kept, weight in guiding.parse(guidance, tuple(self.model.conditioners), self.trained).items():
            merged[kept & self.present] = merged.get(kept & self.present, 0.0) + weight
        merged = {kept: weight for kept, weight in merged.items() if weight}
        self._check(merged, self.trained)
        return merged

    def null(self) -> KeptSlots:
        """The branch that guidance of one number goes away from."""
        (kept,) = guiding.parse(0.0, tuple(self.model.conditioners), self.trained)
        self._check([kept & self.present], self.trained)
        return kept & self.present

    def against(self, values: Mapping[str, Tensors]) -> Conditioning:
        """The conditional branch with these prepared values in their slots, in every row."""
        kept = self.present | frozenset(values)
        self._check([kept], self.model.conditioners.dropout.trained)
        there = {slot: torch.ones(len(self.batch), dtype=torch.bool) for slot in values}
        changed = replace(
            self.batch, prepared={**self.batch.prepared, **values}, present={**self.batch.present, **there}
        )
        return self.model.branch(changed, self.canvas, kept)

    def of_other_model(self, which: object, weights: str) -> X0Predictor:
        """The prediction of another model (or of the one at a path) for the same conditions: what autoguidance goes away from."""
        other = autoguidance_model.find(self.model, which, weights)
        self._check_absent(other)
        conditioning = other.to(self.model.device).eval().branch(self.batch, self.canvas, self.present)
        return lambda x, t: other.diffusion.to_x0(other.predict(x, t, conditioning), x, t)

    def _trained(self) -> frozenset[DroppedSlots]:
        """The subsets of slots that may be left out: those that training dropped, and with them any whose null a negative
        value stands in for, which training has seen as a value.
        """
        parts: list[DroppedSlots] = [frozenset()]
        for slot in self.stand_in:
            parts += [part | {slot} for part in parts]
        return frozenset(subset | part for subset in self.model.conditioners.dropout.trained for part in parts)

    def _check_absent(self, model: Networks) -> None:
        if names := _never_absent(model, self.present, model.conditioners.dropout.trained):
            raise UsageError(
                f"no value was given for {names}, and training never showed the model a picture without",
                hint=f"give one, or train with `dropout: {{{names}: 0.1}}`",
            )

    def _check(self, branches: Iterable[KeptSlots], trained: frozenset[DroppedSlots]) -> None:
        """What guidance leaves out and what was not given, together, were dropped in training."""
        for kept in branches:
            if names := _never_absent(self.model, kept, trained):
                raise UsageError(
                    f"with the values given, this guidance needs a picture without {names}, which training never showed",
                    hint=f"give more values, turn guidance off (1), or train with `dropout: {{{names}: 0.1}}`",
                )


def _never_absent(model: Networks, kept: KeptSlots, trained: frozenset[DroppedSlots]) -> str:
    """The slots outside `kept`, joined by +, where training never dropped just these; else nothing."""
    absent = frozenset(model.conditioners) - kept
    known = not absent or absent in trained
    return "" if known else "+".join(slot for slot in model.conditioners if slot in absent)
