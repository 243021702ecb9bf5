"""Conditioning gain: whether the model listens to a slot."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldmkit.conditioning import Batch
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.metric import Metric
from ldmkit.evaluation.results import Figure
from ldmkit.evaluation.statistics import LEAST_SOURCES, UNKNOWN, Interval, ratio_interval
from ldmkit.random import generator

LEVELS = 10  # of noise, for which the loss is told apart
DEAF = "a model that does not listen"


@dataclass(frozen=True)
class Gain:
    """(loss with shuffled conditions - loss with the right ones) / loss with the right ones."""

    value: float
    interval: Interval | None  # 95 %, over sources
    right: float  # mean loss
    shuffled: float


def conditioning_gain(right: Tensor, shuffled: Tensor, groups: Tensor | None = None) -> Gain:
    """The gain from losses (n,) of the same images at the same noise and timesteps, with right and with shuffled conditions.

    The interval is over the pairs: what noise and timestep do to the loss cancels within a pair. `groups` (n,) are the rows'
    sources; default: each its own.
    """
    value, interval = ratio_interval(shuffled - right, right, groups)
    return Gain(value, interval, float(right.double().mean()), float(shuffled.double().mean()))


def exchange(batch: Batch, slot: str, partner: Tensor) -> Batch:
    """The batch with the conditions of one slot taken from the rows `partner` (b,); everything else stays."""
    other = batch.select(partner)
    return replace(
        batch,
        prepared={**batch.prepared, slot: other.prepared[slot]},
        present={**batch.present, slot: other.present[slot]},
    )


def by_noise(losses: Tensor, timesteps: Tensor, levels: int = LEVELS) -> tuple[float, ...]:
    """The mean of losses (draws, n) in `levels` equally large groups by their timesteps (draws, n), from the least noise up."""
    ordered = losses.flatten()[timesteps.flatten().argsort()]
    return tuple(float(part.mean()) for part in ordered.tensor_split(min(levels, ordered.numel())))


class ConditioningGain(Metric):
    """For each slot, how much the held-out loss rises when its conditions are exchanged among the pictures.

    Args:
        draws: noises and timesteps a picture; the mean over them is the picture's loss.
    """

    asks = "model"

    def __init__(self, *, draws: int = 2) -> None:
        self.draws = draws

    def compute(self, evaluation: Evaluation) -> list[Figure]:
        conditioners = evaluation.model.conditioners
        slots = [slot for slot in conditioners if slot not in conditioners.left_out]
        if not slots:
            return []
        batch = evaluation.encoded(evaluation.batch)
        right = self.losses(evaluation, batch, "right conditions")
        timesteps = torch.stack([self._timesteps(evaluation, draw) for draw in range(self.draws)])
        figures = []
        for slot in slots:
            other = exchange(batch, slot, evaluation.shuffled)
            shuffled = self.losses(evaluation, other, f"shuffled {slot}")
            gain = conditioning_gain(right.mean(0), shuffled.mean(0), evaluation.groups)
            tells = gain.interval is not None and evaluation.sources >= LEAST_SOURCES
            difference = (gain.interval if tells else None) or UNKNOWN
            figures.append(
                evaluation.figure(
                    "conditioning-gain",
                    gain.value,
                    title="conditioning gain",
                    slot=slot,
                    interval=gain.interval,
                    unit="gain",
                    beside={DEAF: 0.0},
                    differences={DEAF: difference},
                    baseline=DEAF,
                    note=f"How many times as large the loss on held-out images is when their {slot} conditions are exchanged, at "
                    f"the same noise and timesteps: {gain.shuffled:.4f} against {gain.right:.4f}. Once (1.000 times) means that "
                    "the model does not listen.",
                    series={
                        "right conditions": by_noise(right, timesteps),
                        "shuffled conditions": by_noise(shuffled, timesteps),
                    },
                    axes=("tenth of the timesteps, the least noise first", "loss by noise level"),
                )
            )
        return figures

    def losses(self, evaluation: Evaluation, batch: Batch, what: str) -> Tensor:
        """(draws, n) the training loss of each row; nothing is dropped. Equal draws in every call."""
        model = evaluation.model
        total = torch.zeros(self.draws, evaluation.n, dtype=torch.float64)
        with torch.no_grad():
            for draw in range(self.draws):
                timesteps = self._timesteps(evaluation, draw)
                for part in evaluation.chunks(f"loss with {what}, {draw + 1}/{self.draws}", evaluation.n):
                    rows = batch.select(range(part.start, part.stop))
                    draws = model.draw(rows.positions + draw * evaluation.n, evaluation.seed)
                    draws = replace(draws, timesteps=timesteps[part], dropped={})
                    losses, _ = model.losses(rows.to(evaluation.device), draws.to(evaluation.device))
                    total[draw, part] = losses.double().cpu()
        return total

    def _timesteps(self, evaluation: Evaluation, draw: int) -> Tensor:
        """(n,) timesteps as training draws them, spread evenly over the pictures, which takes most of the variance away."""
        source = generator(evaluation.seed, "gain", draw)
        order = torch.randperm(evaluation.n, generator=source)
        uniform = (order + torch.rand(evaluation.n, generator=source)) / evaluation.n
        timesteps: Tensor = evaluation.model.diffusion.sample_timesteps(uniform.clamp(max=1 - 1e-6))
        return timesteps
