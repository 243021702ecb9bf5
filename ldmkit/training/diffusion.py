"""Stage two: epsilon_theta and tau_theta, trained jointly (arXiv 2112.10752, equation 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldmkit import random
from ldmkit.conditioning import Batch
from ldmkit.data import Dataset
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.training import posthoc
from ldmkit.training.batches import held_out, training_batches
from ldmkit.training.caching.caches import Attaching
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.checkpointing.state import TrainingState
from ldmkit.training.ema import EMA, averaged
from ldmkit.training.logging.log import Log
from ldmkit.training.optim import Group, Made, Optimization, owners
from ldmkit.training.parallel.distributed import Engine
from ldmkit.training.parallel.distributed import engine as engine_for
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.periodic import Between, give_up
from ldmkit.training.posthoc import PostHoc
from ldmkit.training.precision import Precisions
from ldmkit.training.probe import probe
from ldmkit.training.runtime import Runtime
from ldmkit.training.stop import Stop
from ldmkit.training.threads import Threads, undone

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
    cache: Attaching | None = None,
    pictures: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
    shard: bool = False,
    optimizer: Made | None = None,
    threads: Threads | None = None,
    precisions: Precisions | None = None,
) -> TrainingState:
    """Trains the denoiser and the conditioners of `model` up to `settings.steps`, from the newest checkpoint on.

    Args:
        model: its autoencoder is trained and scaled already.
        data, validation: the samples to train on, and those held out.
        seed: the run's; every draw is keyed by it.
        groups: parameters with their own learning rates; default: all that require a gradient, in one.
        cache: the latents of `data`; None encodes every batch.
        pictures: called with the step, average weights applied, to draw what a person looks at; on the first rank alone.
        ranks: the processes that share each batch; `checkpoints` has the same.
        shard: split the weights and all that belongs to them among the ranks, instead of a copy for each.
        optimizer: what `settings.optimizer` names, where a plugin has it.
        threads: finds out how many of them are the fastest; default: torch's number stays.
        precisions: finds out whether 16 bits are faster; default: the runtime's precision stays.

    The extra terms of the loss are those of `model.extra`.

    Returns:
        the state at the end, whose `ema` holds the average.

    Raises:
        CheckpointError: the latents' scale was measured with other weights than the autoencoder has; none of the stage's
            checkpoints is intact.
        Interrupted: a signal came; a checkpoint of the last step is saved.
        DivergedError: the gradient was not finite several times in a row; the batch is saved beside the checkpoints.
    """
    runtime, ranks = runtime or Runtime(), ranks or Ranks()
    model.autoencoder.check_statistics()
    model.denoiser.checkpointing |= runtime.checkpointing
    snapshots = checkpoints.folder / posthoc.SNAPSHOTS
    engine = engine_for(model, ranks, runtime, shard=shard)
    own = engine.model
    own.extra.seed = seed
    state = begin(own, settings, _own(groups, own), runtime, optimizer)
    own.extra.average = None if state.ema is None else state.ema.applied
    if (newest := checkpoints.continued()) is not None:
        state.resume(newest)
    ranks.decide(lambda: posthoc.forget_after(snapshots, state.step))
    if state.step == 0:
        ranks.decide(lambda: probe(model, data, seed, runtime))
    loader = training_batches(
        data, model.conditioners, state, settings=settings, seed=seed, runtime=runtime, ranks=ranks
    )
    validated = held_out(validation, model.conditioners, most=VALIDATION, settings=settings, seed=seed)

    computing: Runtime = runtime

    def score() -> tuple[dict[str, float], float]:
        with averaged(own, state.ema):
            loss = validation_loss(own, validated, seed, computing, ranks)
        return {"validation": loss}, loss

    def draw(step: int) -> None:
        assert pictures is not None
        with averaged(own, state.ema), engine.whole():
            ranks.decide(partial(pictures, step))

    def trial(computed: Runtime | None = None) -> None:
        with undone(state.modules.values()):
            _gradients(engine, batch, state, settings, seed, computed or computing, ranks)

    pace = (threads or Threads()).pace(STAGE, state.step, log, trial)
    undecided = state.step < settings.steps
    with log.stage(STAGE, total=settings.steps, done=state.step, every=settings.log_every) as out:
        between = Between(
            what="training the diffusion stage",
            settings=settings,
            checkpoints=checkpoints,
            out=out,
            stop=stop,
            ranks=ranks,
            score=score,
            pictures=pictures and draw,
        )
        while state.step < settings.steps:
            batch = next(loader)
            if cache is not None:
                batch = cache.attach(batch)
            if undecided:
                computing = (precisions or Precisions()).runtime(computing, STAGE, state.step, log, trial)
                undecided = False
            with pace.step(state.step):
                good, values = _step(engine, batch, state, settings, seed, computing, ranks)
                if good is not False:
                    state.average()
            # On a device it is looked at when the log reads it too.
            due = (state.step + 1) % settings.log_every == 0
            left_out = (due and state.look()) if state.deferred else state.skipped_in_a_row > 0
            if state.diverged:
                raise give_up(batch, state, checkpoints, stage=STAGE, what="the diffusion loss")
            seen = len(batch) * ranks.count
            state.advance(seen)
            counted = good if isinstance(good, Tensor) else None
            out.step(state.step, {} if good is False else values, images=seen, good=counted)
            if left_out:
                out.alarm(state.step, "the gradient was not finite, and the update is left out")
            post_hoc = state.post_hoc
            if post_hoc is not None and (state.step == settings.steps or state.step % post_hoc.every == 0):
                post_hoc.snapshot(snapshots, state.step, ranks)
            between(state)
            if state.step % settings.checkpoint_every == 0:
                pace.saved(state.step)
    model.eval()
    return engine.finish(state)


def begin(
    model: LatentDiffusion,
    settings: Train,
    groups: Sequence[Group] | None = None,
    runtime: Runtime | None = None,
    optimizer: Made | None = None,
) -> TrainingState:
    """The state before the first step. What extra losses train is in the optimizer and in checkpoints, and in no average."""
    parameters, extra, runtime = trainable(model), model.extra.trained(), runtime or Runtime()
    modules = owners(TrainedPart(model)) | owners(model.extra.terms, "losses.")
    every = groups if groups is not None else [Group({**parameters, **extra})]
    optimization = Optimization.of(every, settings, optimizer=optimizer, modules=modules)
    scaler = runtime.scaler()
    # A CPU has nothing to wait for; fp16's scaler waits itself.
    elsewhere = runtime.device.type != "cpu" and not scaler.is_enabled()
    return TrainingState(
        modules={"model": TrainedPart(model), **({"losses": model.extra.terms} if extra else {})},
        optimizers={"model": optimization},
        ema=None if settings.ema is None else EMA(parameters, decay=settings.ema),
        post_hoc=PostHoc.of(parameters, settings.post_hoc),
        scaler=scaler,
        deferred=elsewhere and optimization.decides_on_the_device,
    )


class TrainedPart(nn.Module):
    """What this stage trains of a `LatentDiffusion`, under the names it has there."""

    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__()
        self.denoiser, self.conditioners, self.diffusion = model.denoiser, model.conditioners, model.diffusion


def trainable(model: LatentDiffusion) -> dict[str, nn.Parameter]:
    """Name -> parameter that this stage trains: no autoencoder, nothing frozen."""
    return {name: p for name, p in TrainedPart(model).named_parameters() if p.requires_grad}


def _own(groups: Sequence[Group] | None, model: LatentDiffusion) -> list[Group] | None:
    """The groups with the parameters that `model` has under their names: shards are not those of the model handed in."""
    if groups is None:
        return None
    parameters = {**trainable(model), **model.extra.trained()}
    return [replace(group, parameters={name: parameters[name] for name in group.parameters}) for group in groups]


def _step(
    engine: Engine, batch: Batch, state: TrainingState, settings: Train, seed: int, runtime: Runtime, ranks: Ranks
) -> tuple[bool | Tensor, dict[str, Tensor]]:
    """One optimizer step: whether it was made, on the device where that is `deferred`, and what is logged of it.

    Means over this rank's rows: the gradients' mean over the ranks is the engine's, that of the values the log's.
    """
    values = _gradients(engine, batch, state, settings, seed, runtime, ranks)
    optimization = state.optimizers["model"]
    optimization.hold_back(state.step)
    update = state.defer_update if state.deferred else state.update
    good, norm = update("model", clip=settings.clip)
    return good, {**values, "gradient_norm": norm, "lr": torch.tensor(optimization.rate)}


def _gradients(
    engine: Engine, batch: Batch, state: TrainingState, settings: Train, seed: int, runtime: Runtime, ranks: Ranks
) -> dict[str, Tensor]:
    """Those of the next step, and the parts of its loss; with accumulation, the gradient of the whole batch from its parts."""
    engine.model.train()
    # nn.Dropout draws nowhere else.
    torch.manual_seed(random.key(seed, ranks.own_name(f"{STAGE}/dropout-layers"), state.step))
    engine.model.extra.step = state.step
    state.optimizers["model"].begin(state.step)
    values: dict[str, Tensor] = {}
    pieces = list(split(batch, settings.accumulate))
    for part in pieces:
        share = len(part) / len(batch)
        draws = engine.model.draw(part.positions, seed, _size(part)).to(runtime.device)
        with engine.collecting(last=part is pieces[-1]):
            with runtime.autocast():
                loss, parts = engine.loss(part.to(runtime.device), draws)
            state.backward(loss * share)
        for name, value in parts.items():
            values[name] = values.get(name, torch.zeros_like(value)) + value * share
    return values


def _size(batch: Batch) -> tuple[int, int]:
    """(h, w) of the batch's pictures: with buckets not always the model's."""
    return batch.images.shape[2], batch.images.shape[3]


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """A batch in up to `parts` pieces of equal length (the last one may be shorter)."""
    if parts == 1:
        yield batch
        return
    length = -(-len(batch) // parts)
    for first in range(0, len(batch), length):
        yield batch.select(range(first, min(first + length, len(batch))))


@torch.no_grad()
def validation_loss(
    model: LatentDiffusion, samples: Sequence[Batch], seed: int, runtime: Runtime, ranks: Ranks | None = None
) -> float:
    """The loss of held-out batches at fixed timesteps and noise, nothing dropped: the same number for the same weights.

    Several ranks share the rows. Timesteps are spread evenly over their distribution instead of drawn, which takes most of the
    noise out of the mean.
    """
    model.eval()
    total = sum(len(batch) for batch in samples)
    order = torch.randperm(total, generator=random.generator(seed, "validation/order", 0))
    spread = (order + 0.5) / max(total, 1)
    ranks = ranks or Ranks()
    loss, rows, first = 0.0, 0, 0
    for whole in samples:
        own = ranks.rows(len(whole))
        batch = whole.select(own)
        draws = model.draw(batch.positions, random.key(seed, "validation/draws", 0), _size(batch))
        draws = replace(
            draws,
            timesteps=model.diffusion.sample_timesteps(spread[first + own.start : first + own.stop]),
            dropped={slot: torch.zeros(len(batch), dtype=torch.bool) for slot in draws.dropped},
        )
        with runtime.autocast():
            value, _ = model(batch.to(runtime.device), draws.to(runtime.device))
        loss += float(value) * len(batch)
        rows += len(batch)
        first += len(whole)
    loss, seen = ranks.total([loss, rows])
    return loss / max(seen, 1)
