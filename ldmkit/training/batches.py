"""The batches of a stage: those it is trained on, from where its state stands, and those held out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ldmkit.conditioning import Batch, ConditionerSet
from ldmkit.data import Dataset, batches
from ldmkit.training.checkpointing.state import TrainingState
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.runtime import Runtime

if TYPE_CHECKING:
    from ldmkit.recipe import Train


def training_batches(
    data: Dataset,
    conditioners: ConditionerSet,
    state: TrainingState,
    *,
    settings: Train,
    seed: int,
    runtime: Runtime,
    ranks: Ranks,
) -> Iterator[Batch]:
    """This rank's rows of every batch that is left to train on."""
    return batches(
        data,
        conditioners,
        start=state.position,
        batch=settings.batch,
        seed=seed,
        steps=max(settings.steps - state.step, 0),
        workers=runtime.workers,
        timeout=runtime.worker_timeout,
        rank=ranks.rank,
        ranks=ranks.count,
    )


def held_out(
    validation: Dataset, conditioners: ConditionerSet, *, most: int, settings: Train, seed: int
) -> list[Batch]:
    """Up to `most` samples that no step trains on, the same in every run, in whole batches."""
    count = min(len(validation), most) if validation.finite else most
    size = min(settings.batch, count)
    return list(batches(validation, conditioners, start=0, batch=size, seed=seed, steps=count // size))
