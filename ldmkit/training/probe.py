"""One look at the data and at every conditioner before anything is trained: what is wrong with either is named in seconds."""

from __future__ import annotations

from dataclasses import replace

import torch

from ldmkit.conditioning import Batch, Canvas
from ldmkit.conditioning.checks import Examiner
from ldmkit.data import Dataset, batches
from ldmkit.errors import DataError, LdmkitError, PluginError
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.training.runtime import Runtime

ROWS = 64  # samples in which every slot has to find its condition at least once
ASKED = 8  # of them, that the conditioners are asked for


def probe(model: LatentDiffusion, data: Dataset, seed: int, runtime: Runtime | None = None) -> None:
    """Prepares the first samples and asks every conditioner for an answer and its null, on the device of the training.

    Shapes, types, device, numbers, side effects, and what is shown to people. Nothing is drawn, no weight changes.

    Raises:
        DataError: a slot finds its condition in none of the first samples, or a field is not there.
        PluginError: a conditioner breaks its contract; the message names slot, plugin, version, what came, and what to do.
    """
    runtime = runtime or Runtime()
    (batch,) = batches(data, model.conditioners, start=0, batch=ROWS, seed=seed, steps=1)
    _check_present(model, batch)
    home, training = model.device, model.training
    model.eval()
    model.conditioners.to(runtime.device)
    model.autoencoder.to(runtime.device)  # a canvas hands its encoder to those who ask
    canvas = replace(model.canvas((batch.images.shape[2], batch.images.shape[3])), device=torch.device(runtime.device))
    try:
        with torch.no_grad(), runtime.autocast():
            for slot in model.conditioners:
                _ask(model.conditioners.examiner(slot), batch, canvas)
    finally:
        model.conditioners.to(home)
        model.autoencoder.to(home)
        model.train(training)


def _check_present(model: LatentDiffusion, batch: Batch) -> None:
    for slot, present in batch.present.items():
        if not bool(present.any()):
            fields = ", ".join(sorted(set(model.conditioners.fields[slot].values())))
            raise DataError(
                f"slot {slot} has no condition in the first {len(batch)} samples: {fields} is None in each",
                hint=f"give the data that field, name another one with `fields`, or leave {slot} out",
            )


def _ask(examiner: Examiner, batch: Batch, canvas: Canvas) -> None:
    """One slot: its null, its answer to the rows that have the condition, and what it shows."""
    rows = batch.present[examiner.slot].nonzero().flatten()[:ASKED]
    known = batch.select(rows)
    prepared = known.prepared[examiner.slot]
    assert prepared is not None
    moved = {name: value.to(canvas.device) for name, value in prepared.items()}
    examiner.ask(None, canvas, 1, closely=True)
    examiner.ask(moved, canvas, len(rows), closely=True)
    first = {name: value[0] for name, value in prepared.items()}
    examiner.preview(first)
    examiner.output_size(first)
    try:
        examiner.fidelity(known.images.to(canvas.device), moved)
    except LdmkitError as error:
        if isinstance(error, PluginError):
            raise
        # A measure whose weights are not here, say: the evaluation tells, and goes on without it.
