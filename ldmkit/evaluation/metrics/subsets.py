"""What is obeyed when only some of the conditions are given: each alone, and each of the others dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ldmkit.conditioning import Batch, KeptSlots
from ldmkit.data import Judge
from ldmkit.evaluation.context import Evaluation, Scores
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.results import Figure


class Subsets(Metric):
    """Each condition's fidelity with no other condition given, beside all of them given, and each of the others dropped.

    Fidelity is the data source's judge of the slot's field where it has one, else the conditioner's own. Pictures are sampled
    from the same seeds and held-out conditions for every subset; subsets that training never dropped are left out.

    Args:
        count: samples for each subset; with three slots there are seven.
    """

    def __init__(self, *, count: int = 128) -> None:
        self.count = count

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        conditioners = evaluation.model.conditioners
        count = min(self.count, evaluation.n)
        slots = _there(evaluation)
        every = frozenset(slots)
        found: dict[tuple[str, KeptSlots], Scores] = {}
        for kept in _subsets(slots):
            if kept != every and frozenset(conditioners) - kept not in conditioners.dropout.trained:
                continue
            images = _generated(evaluation, kept, count)
            for slot in kept:
                if (score := _obeyed(evaluation, slot, images)) is not None:
                    found[slot, kept] = score
        return [
            self._figure(evaluation, slot, {kept: score for (own, kept), score in found.items() if own == slot})
            for slot in slots
            if (slot, frozenset({slot})) in found
        ]

    def _figure(self, evaluation: Evaluation, slot: str, scores: Mapping[KeptSlots, Scores]) -> Figure:
        every = frozenset(_there(evaluation))
        alone = scores[frozenset({slot})]
        beside = {"all given": scores[every]} if len(every) > 1 else {}
        beside |= {
            f"without {'+'.join(s for s in _there(evaluation) if s not in kept)}": score
            for kept, score in scores.items()
            if 1 < len(kept) < len(every)
        }
        judge = _judge(evaluation, slot)
        return evaluation.figure(
            "subsets",
            alone.values,
            rows=alone.rows,
            title=f"{'fidelity' if judge is None else judge.name}, given alone",
            slot=slot,
            unit="" if judge is None else "fraction",
            beside=beside,
            note=f"How well {slot} is obeyed when no other condition is given; beside it the same with all conditions given, and "
            "with others dropped. Same seeds, same held-out conditions.",
        )


def _there(evaluation: Evaluation) -> list[str]:
    """The slots that the model was not loaded without."""
    conditioners = evaluation.model.conditioners
    return [slot for slot in conditioners if slot not in conditioners.left_out]


def _subsets(slots: Sequence[str]) -> list[KeptSlots]:
    """Every subset but the empty one, the largest first."""
    return [frozenset(kept) for size in range(len(slots), 0, -1) for kept in combinations(slots, size)]


def _generated(evaluation: Evaluation, kept: KeptSlots, count: int) -> Tensor:
    """Pictures (count, c, h, w) for the conditions of the first rows, in the slots `kept` alone."""
    if kept == frozenset(_there(evaluation)):
        return evaluation.generated[:count]
    pictures = []
    batch = _only(evaluation.batch.select(range(count)), kept)
    for part in evaluation.chunks(f"sampling by {'+'.join(sorted(kept))}", count):
        pictures.append(
            evaluation.model.sample_batch(
                batch.select(range(part.start, part.stop)).to(evaluation.device),
                seed=evaluation.seed + part.start,
                sampler=evaluation.sampler,
                steps=evaluation.steps,
                guidance=evaluation.guidance,
                options=evaluation.options,
            )
            .float()
            .cpu()
        )
    return torch.cat(pictures)


def _only(batch: Batch, kept: KeptSlots) -> Batch:
    """The batch with every other slot absent in all rows."""
    present = {slot: value if slot in kept else torch.zeros_like(value) for slot, value in batch.present.items()}
    return replace(batch, present=present)


def _judge(evaluation: Evaluation, slot: str) -> Judge | None:
    fields = evaluation.model.conditioners.fields[slot].values()
    return next((judge for field in fields if (judge := evaluation.train.source.judge(field)) is not None), None)


def _obeyed(evaluation: Evaluation, slot: str, images: Tensor) -> Scores | None:
    """How well `images` obey the slot's conditions of the first rows; None where nobody can say."""
    batch = evaluation.batch.select(range(len(images)))
    rows = [row for row in range(len(images)) if batch.present[slot][row]]
    if not rows:
        return None
    evaluation.check()
    if (judge := _judge(evaluation, slot)) is not None:
        samples: list[Mapping[str, Any]] = [evaluation.samples[row] for row in rows]
        return Scores(judge.score(images[rows], samples).float().cpu(), torch.tensor(rows))
    prepared = batch.select(rows).prepared[slot]
    assert prepared is not None
    there = {name: value.to(evaluation.device) for name, value in prepared.items()}
    with torch.no_grad():
        score = evaluation.model.conditioners.examiner(slot).fidelity(images[rows].to(evaluation.device), there)
    return None if score is None else Scores(score.float().cpu(), torch.tensor(rows))
