"""Stage two: epsilon_theta and tau_theta, trained jointly (arXiv 2112.10752, equation 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldmkit import random
from ldmkit.conditioning import Batch
from ldmkit.data import Dataset, batches
from ldmkit.errors import DataError
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.training.cache import LatentCache
from ldmkit.training.checkpoint import Checkpoints
from ldmkit.training.ema import EMA, averaged
from ldmkit.training.log import Log
from ldmkit.training.optim import Group, Optimization
from ldmkit.training.publish import publish
from ldmkit.training.runtime import Runtime
from ldmkit.training.state import EARLY, TrainingState, diverged
from ldmkit.training.stop import Stop

if TYPE_CHECKING:
    from ldmkit.recipe import Train

STAGE = "diffusion"
VALIDATION = 256  # held-out pictures for the validation loss


def train_diffusion(
    model: LatentDiffusion,
    data: Dataset,
    validation: Dataset,
    *,
    settings: Train,
    seed: int,
    checkpoints: Checkpoints,
    log: Log,
    stop: Stop,
    runtime: Runtime | None = None,
    groups: Sequence[Group] | None = None,
    cache: LatentCache | None = None,
    pictures: Callable[[int], None] | None = None,
) -> TrainingState:
    """Trains the denoiser and the conditioners of `model` up to `settings.steps`, from the newest checkpoint on.

    Args:
        model: its autoencoder is trained and scaled already.
        data, validation: the samples to train on, and those held out.
        seed: the run's; every draw is keyed by it.
        groups: parameters with their own learning rates; default: all that require a gradient, in one.
        cache: the latents of `data`; None encodes every batch.
        pictures: called with the step, average weights applied, to draw what a person looks at.

    Returns:
        the state at the end, whose `ema` holds the average.

    Raises:
        Interrupted: a signal came; a checkpoint of the last step is saved.
        DivergedError: the gradient was not finite several times in a row; the batch is saved beside the checkpoints.
    """
    runtime = runtime or Runtime()
    model.to(runtime.device)
    state = begin(model, settings, groups, runtime)
    if (newest := checkpoints.newest()) is not None:
        state.resume(newest)
    if runtime.compile:
        model.denoiser.compile()
    loader = _loader(model, data, state, settings, seed, runtime)
    held_out = list(_held_out(model, validation, settings, seed))
    if state.step == 0:
        check_present(model, data, seed)

    with log.stage(STAGE, total=settings.steps, done=state.step, every=settings.log_every) as out:
        while state.step < settings.steps:
            batch = next(loader)
            if cache is not None:
                batch = cache.attach(batch)
            good, values = _step(model, batch, state, settings, seed, runtime)
            if good and state.ema is not None:
                state.ema.update()
            if state.diverged:
                raise _give_up(batch, state, checkpoints)
            state.advance(len(batch))
            out.step(state.step, values if good else {}, images=len(batch))

            last = state.step == settings.steps
            if last or state.step % settings.validate_every == 0:
                with averaged(model, state.ema):
                    out.write(state.step, {"validation": validation_loss(model, held_out, seed, runtime)})
            if pictures is not None and (last or state.step == EARLY or state.step % settings.sample_every == 0):
                with averaged(model, state.ema):
                    pictures(state.step)
            if last or stop.requested or state.step % settings.checkpoint_every == 0:
                state.save(checkpoints)
            stop.check(f"training the diffusion stage, step {state.step} of {settings.steps}")
    model.eval()
    return state


def begin(
    model: LatentDiffusion, settings: Train, groups: Sequence[Group] | None = None, runtime: Runtime | None = None
) -> TrainingState:
    """The state before the first step."""
    parameters = trainable(model)
    optimization = Optimization(
        groups if groups is not None else [Group(parameters)],
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        steps=settings.steps,
        warmup=settings.warmup,
        decay=settings.decay,
    )
    return TrainingState(
        modules={"model": TrainedPart(model)},
        optimizers={"model": optimization},
        ema=None if settings.ema is None else EMA(parameters, decay=settings.ema),
        scaler=(runtime or Runtime()).scaler(),
    )


class TrainedPart(nn.Module):
    """What this stage trains of a `LatentDiffusion`, under the names it has there."""

    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__()
        self.denoiser, self.conditioners, self.diffusion = model.denoiser, model.conditioners, model.diffusion


def trainable(model: LatentDiffusion) -> dict[str, nn.Parameter]:
    """Name -> parameter that this stage trains: no autoencoder, nothing frozen."""
    return {name: p for name, p in TrainedPart(model).named_parameters() if p.requires_grad}


def _step(
    model: LatentDiffusion, batch: Batch, state: TrainingState, settings: Train, seed: int, runtime: Runtime
) -> tuple[bool, dict[str, Tensor]]:
    """One optimizer step; with accumulation, the gradient of the whole batch from its parts."""
    model.train()
    torch.manual_seed(random.key(seed, f"{STAGE}/dropout-layers", state.step))  # nn.Dropout draws nowhere else
    optimization = state.optimizers["model"]
    optimization.begin(state.step)
    values: dict[str, Tensor] = {}
    for part in split(batch, settings.accumulate):
        share = len(part) / len(batch)
        draws = model.draw(part.positions, seed).to(runtime.device)
        with runtime.autocast():
            loss, parts = model(part.to(runtime.device), draws)
        state.backward(loss * share)
        for name, value in parts.items():
            values[name] = values.get(name, torch.zeros_like(value)) + value * share
    optimization.hold_back(state.step)
    good, norm = state.update("model", clip=settings.clip)
    return good, {**values, "gradient_norm": norm, "lr": torch.tensor(optimization.rate)}


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """A batch in up to `parts` pieces of equal length (the last one may be shorter)."""
    if parts == 1:
        yield batch
        return
    length = -(-len(batch) // parts)
    for first in range(0, len(batch), length):
        yield batch.select(range(first, min(first + length, len(batch))))


@torch.no_grad()
def validation_loss(model: LatentDiffusion, held_out: Sequence[Batch], seed: int, runtime: Runtime) -> float:
    """The loss of held-out batches at fixed timesteps and noise, nothing dropped: the same number for the same weights.

    Timesteps are spread evenly over their distribution instead of drawn, which takes most of the noise out of the mean.
    """
    model.eval()
    total = sum(len(batch) for batch in held_out)
    order = torch.randperm(total, generator=random.generator(seed, "validation/order", 0))
    spread = (order + 0.5) / max(total, 1)
    loss, first = 0.0, 0
    for batch in held_out:
        draws = model.draw(batch.positions, random.key(seed, "validation/draws", 0))
        draws = replace(
            draws,
            timesteps=model.diffusion.sample_timesteps(spread[first : first + len(batch)]),
            dropped={slot: torch.zeros(len(batch), dtype=torch.bool) for slot in draws.dropped},
        )
        with runtime.autocast():
            value, _ = model(batch.to(runtime.device), draws.to(runtime.device))
        loss += float(value) * len(batch)
        first += len(batch)
    return loss / max(total, 1)


def _loader(
    model: LatentDiffusion, data: Dataset, state: TrainingState, settings: Train, seed: int, runtime: Runtime
) -> Iterator[Batch]:
    steps = settings.steps - state.step
    return batches(
        data,
        model.conditioners,
        start=state.position,
        batch=settings.batch,
        seed=seed,
        steps=max(steps, 0),
        workers=runtime.workers,
    )


def _held_out(model: LatentDiffusion, validation: Dataset, settings: Train, seed: int) -> Iterator[Batch]:
    count = min(len(validation), VALIDATION) if validation.finite else VALIDATION
    size = min(settings.batch, count)
    return batches(validation, model.conditioners, start=0, batch=size, seed=seed, steps=count // size)


def check_present(model: LatentDiffusion, data: Dataset, seed: int, *, rows: int = 64) -> None:
    """One look at the data before the first step.

    Raises:
        DataError: a slot finds its condition in none of the first samples.
    """
    for batch in batches(data, model.conditioners, start=0, batch=rows, seed=seed, steps=1):
        for slot, present in batch.present.items():
            if not bool(present.any()):
                fields = ", ".join(sorted(set(model.conditioners.fields[slot].values())))
                raise DataError(
                    f"slot {slot} has no condition in the first {rows} samples: {fields} is None in each",
                    hint=f"give the data that field, name another one with `fields`, or leave {slot} out",
                )


def _give_up(batch: Batch, state: TrainingState, checkpoints: Checkpoints) -> Exception:
    place = checkpoints.folder / f"diverged-{state.step:08d}"
    tensors = {"images": batch.images, "positions": batch.positions}
    for slot, prepared in batch.prepared.items():
        tensors |= {f"{slot}/{name}": value for name, value in (prepared or {}).items()}
    publish(place, {"batch": tensors}, {"about": {"step": state.step, "stage": STAGE}}, {})
    return diverged(state.step + 1, "the diffusion loss", str(place))
