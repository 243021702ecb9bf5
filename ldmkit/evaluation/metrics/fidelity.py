"""Fidelity: how well the pictures obey their conditions, as each conditioner itself measures it."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.evaluation.context import Evaluation
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
            beside = {}
            for name, (images, rows) in others.items():
                value = self._measure(evaluation, slot, images, rows)
                assert value is not None
                beside[name] = float(value.mean())
            note = (
                "How well each picture obeys its condition, as the conditioner itself measures it; higher is better. "
                "Beside it the same for real pictures, for what the autoencoder makes of them, and for the samples "
                "compared with somebody else's condition."
            )
            figures.append(
                evaluation.figure("fidelity", own, slot=slot, beside=beside, baseline="shuffled conditions", note=note)
            )
        return figures

    def _measure(self, evaluation: Evaluation, slot: str, images: Tensor, rows: Tensor) -> Tensor | None:
        """(m,) of `images` against the conditions of `rows`; rows without the condition are left out."""
        values = []
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
        return torch.cat(values) if values else None
