"""Judges: what the data source itself knows to check its own pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.data import Judge as SourceJudge
from ldmkit.evaluation.context import Evaluation, Scores
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.results import Figure


class Judge(Metric):
    """The source's own judge of every field a slot reads: a classifier, attributes read back by colour and shape.

    A judge of ours proves little alone, so it is shown on real held-out pictures, on reconstructions, and on the samples judged
    by somebody else's conditions.

    Args:
        count: samples to judge.
    """

    def __init__(self, *, count: int = 512) -> None:
        self.count = count

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        figures = []
        for slot, fields in evaluation.model.conditioners.fields.items():
            for field in dict.fromkeys(fields.values()):
                # The training part's judge: a classifier is fitted on training pictures, and never sees those it is tested on.
                judge = evaluation.train.source.judge(field)
                if judge is not None:
                    figures.append(self._figure(evaluation, judge, slot, field))
        return figures

    def _figure(self, evaluation: Evaluation, judge: SourceJudge, slot: str, field: str) -> Figure:
        present = evaluation.batch.present[slot]
        rows = [row for row in range(min(self.count, evaluation.n)) if present[row]]
        real = [row for row in rows if row < evaluation.distinct]
        strange = [row for row in rows if present[evaluation.shuffled[row]]]

        def score(images: Tensor, rows: list[int], asked: list[int]) -> Tensor:
            evaluation.check()
            return judge.score(images[rows], [evaluation.samples[row] for row in asked]).float().cpu()

        others = score(evaluation.generated, strange, evaluation.shuffled[strange].tolist())
        beside: dict[str, float | Scores] = {
            "held-out pictures": Scores(score(evaluation.truth, real, real), torch.tensor(real)),
            "reconstructions": Scores(score(evaluation.reconstructions, real, real), torch.tensor(real)),
            "shuffled conditions": Scores(others, torch.tensor(strange)),
        }
        if judge.chance is not None:
            beside["chance"] = judge.chance
        return evaluation.figure(
            "judge",
            score(evaluation.generated, rows, rows),
            rows=rows,
            title=judge.name,
            slot=slot,
            unit="fraction",
            beside=beside,
            baseline="shuffled conditions",
            note=f"How much of the {field} asked for is found in the picture, by a judge that the data source brings. "
            "The judge's own figure on real held-out pictures says how far it can be trusted.",
        )
