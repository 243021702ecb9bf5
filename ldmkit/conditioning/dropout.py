"""Condition dropout as a distribution over subsets of slots (classifier-free guidance, Ho & Salimans, arXiv 2207.12598)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Generator, Tensor

from ldmkit.errors import RecipeError
from ldmkit.random import uniform

DroppedSlots = frozenset[str]
"""The slots that a sample or a branch loses; all others are given in it."""

KeptSlots = frozenset[str]
"""The slots that a sample or a branch keeps; all others are null in it."""


@dataclass(frozen=True)
class Dropout:
    """Which slots a training sample loses: `table[subset]` is the probability that exactly this subset is dropped.

    Probabilities sum to 1; the empty subset (all is kept) takes what is left.
    """

    slots: tuple[str, ...]
    table: Mapping[DroppedSlots, float]

    @classmethod
    def independent(cls, rates: Mapping[str, float]) -> Dropout:
        """Each slot is dropped by itself with its own rate in [0, 1]. Raises RecipeError for a rate outside it."""
        for slot, rate in rates.items():
            if not 0.0 <= rate <= 1.0:
                raise RecipeError(f"dropout of {slot} is {rate}; a rate lies between 0 and 1")
        table: dict[DroppedSlots, float] = {}
        for choice in product((False, True), repeat=len(rates)):
            probability = 1.0
            for dropped, rate in zip(choice, rates.values(), strict=True):
                probability *= rate if dropped else 1.0 - rate
            if probability > 0.0:
                table[frozenset(slot for slot, dropped in zip(rates, choice, strict=True) if dropped)] = probability
        return cls(tuple(rates), table)

    @classmethod
    def from_table(cls, slots: Sequence[str], table: Mapping[str, float]) -> Dropout:
        """``{"text": 0.1, "text+low_res": 0.05}``: exactly this subset is dropped, with this probability.

        What is left of 1 drops nothing.         Raises RecipeError for an unknown slot, a subset named twice, or
        probabilities outside [0, 1] or of a sum above
        1.
        """
        subsets: dict[DroppedSlots, float] = {}
        for names, probability in table.items():
            subset = frozenset(name.strip() for name in names.split("+"))
            if unknown := subset - set(slots):
                raise RecipeError(
                    f"dropout names {', '.join(sorted(unknown))}; the slots are {', '.join(slots) or 'none'}"
                )
            if subset in subsets:
                raise RecipeError(f"dropout names the subset {names} twice")
            if not 0.0 <= probability <= 1.0:
                raise RecipeError(f"dropout of {names} is {probability}; a probability lies between 0 and 1")
            subsets[subset] = probability
        total = sum(subsets.values())
        if total > 1.0 + 1e-9:
            raise RecipeError(f"the probabilities of dropout sum to {total:g}; at most 1 is possible")
        kept: dict[DroppedSlots, float] = {frozenset(): max(1.0 - total, 0.0)}
        return cls(tuple(slots), {s: p for s, p in {**kept, **subsets}.items() if p > 0.0})

    @property
    def trained(self) -> frozenset[DroppedSlots]:
        """The subsets that training drops, the empty one included."""
        return frozenset(self.table) | {frozenset()}

    @property
    def droppable(self) -> tuple[str, ...]:
        """The slots that are ever dropped, in their order."""
        return tuple(slot for slot in self.slots if any(slot in subset for subset in self.table))

    def draw(self, generators: Sequence[Generator]) -> dict[str, Tensor]:
        """slot -> (b,) bool, True = dropped; row i is drawn from `generators[i]` alone."""
        subsets = list(self.table)
        edges = torch.tensor([self.table[subset] for subset in subsets], dtype=torch.float64).cumsum(0)
        draws = uniform(generators).double() * edges[-1]
        chosen = torch.bucketize(draws, edges, right=True).clamp(max=len(subsets) - 1)
        member = {s: torch.tensor([s in subset for subset in subsets]) for s in self.slots}
        return {slot: member[slot][chosen] for slot in self.slots}

    def to_json(self) -> dict[str, float]:
        """``{"text+low_res": 0.05}``, without the empty subset."""
        return {"+".join(s for s in self.slots if s in subset): p for subset, p in self.table.items() if subset}
