"""Fidelity: how well the pictures obey their conditions, as each conditioner itself measures it."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.evaluation.context import Evaluation, Scores
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.results import Figure


class Fidelity(Metric):
    """Each slot's own measure of obedience, beside real pictures, reconstructions and shuffled conditions."""

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        figures = []
        for slot in evaluation.model.conditioners:
            own = self._measure(evaluation, slot, evaluation.generated, torch.arange(evaluation.n))
            if own is None:
                continue
            others = {
                "held-out pictures": (evaluation.truth, torch.arange(evaluation.distinct)),
                "reconstructions": (evaluation.reconstructions, torch.arange(evaluation.distinct)),
                "shuffled conditions": (evaluation.generated, evaluation.shuffled),
            }
            beside: dict[str, Scores] = {}
            for name, (images, rows) in others.items():
                value = self._measure(evaluation, slot, images, rows)
                assert value is not None
                beside[name] = value
            note = (
                "How well each picture obeys its condition, as the conditioner itself measures it; higher is better. "
                "Beside it the same for real pictures, for what the autoencoder makes of them, and for the samples "
                "compared with somebody else's condition."
            )
            figures.append(
                evaluation.figure(
                    "fidelity",
                    own.values,
                    rows=own.rows,
                    slot=slot,
                    beside=beside,
                    baseline="shuffled conditions",
                    note=note,
                )
            )
        return figures

    def _measure(self, evaluation: Evaluation, slot: str, images: Tensor, rows: Tensor) -> Scores | None:
        """Of `images` (m, c, h, w), which are the first m rows, against the conditions of `rows` (m,).

        Rows without the condition are left out.
        """
        values, kept = [], []
        examiner = evaluation.model.conditioners.examiner(slot)
        with torch.no_grad():
            for part in evaluation.chunks(f"fidelity of {slot}", len(rows)):
                batch = evaluation.batch.select(rows[part])
                keep = batch.present[slot]
                prepared = batch.prepared[slot]
                if prepared is None or not keep.any():
                    continue
                there = {name: value[keep].to(evaluation.device) for name, value in prepared.items()}
                value = examiner.fidelity(images[part][keep].to(evaluation.device), there)
                if value is None:
                    return None
                values.append(value.float().cpu())
                kept.append(torch.arange(part.start, part.stop)[keep])
        return Scores(torch.cat(values), torch.cat(kept)) if values else None
