"""Stage one: the autoencoder against a pixel, a perceptual and an adversarial loss (arXiv 2112.10752, equation 25)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldmkit import random
from ldmkit.autoencoder import Autoencoder, AutoencoderLoss
from ldmkit.autoencoder.alarms import Alarms, Movement
from ldmkit.conditioning import Batch, ConditionerSet
from ldmkit.data import Dataset
from ldmkit.training.batches import held_out, training_batches
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.checkpointing.state import TrainingState
from ldmkit.training.ema import EMA, averaged
from ldmkit.training.logging.log import Log
from ldmkit.training.optim import Group, Optimization
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.periodic import Between, give_up
from ldmkit.training.runtime import Runtime
from ldmkit.training.stop import Stop

if TYPE_CHECKING:
    from ldmkit.recipe import AutoencoderTrain

STAGE = "autoencoder"
VALIDATION = 64  # held-out pictures for the PSNR


def train_autoencoder(
    autoencoder: Autoencoder,
    losses: AutoencoderLoss,
    data: Dataset,
    validation: Dataset,
    *,
    settings: AutoencoderTrain,
    seed: int,
    checkpoints: Checkpoints,
    log: Log,
    stop: Stop,
    runtime: Runtime | None = None,
    pictures: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
) -> TrainingState:
    """Trains the autoencoder up to `settings.steps`, from the newest checkpoint on; it ends frozen, with its average weights.

    Args and errors as in `ldmkit.training.diffusion.train_diffusion`. `losses` holds the discriminator, whose optimizer is
    its own; until the adversarial loss starts, the discriminator stands still.

    Several `ranks` each hold a whole copy: both networks are small beside the UNet. Their gradients are averaged here, in one
    message after each backward pass, and not by DDP: two optimizers, gradients that the adaptive weight asks for in the middle of
    the loss, and a penalty's second derivative are what it does not promise. A batch norm sees its own rank's rows alone.
    """
    runtime, ranks = runtime or Runtime(), ranks or Ranks()
    runtime.place(autoencoder.requires_grad_(True))
    runtime.place(losses)
    ranks.alike({**autoencoder.state_dict(), **{f"losses/{name}": v for name, v in losses.state_dict().items()}})
    state = begin(autoencoder, losses, settings, runtime)
    if (newest := checkpoints.continued()) is not None:
        state.resume(newest)
    loader = training_batches(data, pictures_only(), state, settings=settings, seed=seed, runtime=runtime, ranks=ranks)
    validated = held_out(validation, pictures_only(), most=VALIDATION, settings=settings, seed=seed)
    alarms, movement = Alarms(), None if losses.discriminator is None else Movement(losses.discriminator)

    def score() -> tuple[dict[str, float], float]:
        with averaged(autoencoder, state.ema):
            reached = psnr(autoencoder, validated, runtime, ranks)
        return {"psnr": reached}, -reached

    def draw(step: int) -> None:
        assert pictures is not None
        with averaged(autoencoder, state.ema):
            ranks.decide(partial(pictures, step))

    with log.stage(STAGE, total=settings.steps, done=state.step, every=settings.log_every) as out:
        between = Between(
            what="training the autoencoder",
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
            autoencoder.train()
            torch.manual_seed(random.key(seed, ranks.own_name(f"{STAGE}/dropout-layers"), state.step))
            good, values = _step(autoencoder, losses, batch, state, settings, seed, runtime, ranks)
            if good:
                state.average()
            if state.diverged:
                raise give_up(batch, state, checkpoints, stage=STAGE, what="the autoencoder's loss")
            seen = len(batch) * ranks.count
            state.advance(seen)
            watched = dict(out.step(state.step, values if good else {}, images=seen) or {})
            if watched and movement is not None and losses.adversarial_active(state.step - 1):
                watched["discriminator_change"] = movement()
            if state.skipped_in_a_row:  # the update was left out, and so is what would be written of it
                watched["gradient_norm"] = float(values["gradient_norm"])
            for found in alarms.observe(state.step, watched):
                out.alarm(state.step, str(found))
            between(state)
    if state.ema is not None:
        state.ema.copy_to_parameters()
    autoencoder.requires_grad_(False).eval()
    return state


def begin(
    autoencoder: Autoencoder, losses: AutoencoderLoss, settings: AutoencoderTrain, runtime: Runtime | None = None
) -> TrainingState:
    """The state before the first step: Adam with the betas of the recipe for both sides (released code: 0.5, 0.9)."""
    generator = {name: p for name, p in autoencoder.named_parameters() if p.requires_grad}
    own = {name: p for name, p in losses.named_parameters() if p.requires_grad}
    discriminator = {name: p for name, p in own.items() if name.startswith("discriminator.")}
    learned = {f"losses.{name}": p for name, p in own.items() if name not in discriminator}  # the log-variance
    sides = {"generator": {**generator, **learned}, "discriminator": discriminator}
    optimizers = {
        name: Optimization.of([Group(parameters)], settings) for name, parameters in sides.items() if parameters
    }
    return TrainingState(
        modules={"autoencoder": autoencoder, "losses": losses},
        optimizers=optimizers,
        ema=None if settings.ema is None else EMA(generator, decay=settings.ema),
        scaler=(runtime or Runtime()).scaler(),
    )


def _step(
    autoencoder: Autoencoder,
    losses: AutoencoderLoss,
    batch: Batch,
    state: TrainingState,
    settings: AutoencoderTrain,
    seed: int,
    runtime: Runtime,
    ranks: Ranks,
) -> tuple[bool, dict[str, Tensor]]:
    """The autoencoder's update, then the discriminator's. Values are means over this rank's rows."""
    images = windows(batch.images, batch.positions.tolist(), settings.crop, seed).to(runtime.device)
    noise = _posterior_noise(autoencoder, images, batch, seed).to(runtime.device)
    generator = state.optimizers["generator"]
    generator.begin(state.step)
    _track(losses.discriminator, False)
    with runtime.autocast():
        reconstruction = autoencoder(images, noise)
        loss, values = losses.generator(images, reconstruction, state.step, autoencoder.last_layer)
    state.backward(loss)
    ranks.average(generator.gradients)
    good, norm = state.update("generator", clip=settings.clip)
    values = {"loss": loss, **values, "gradient_norm": norm, "lr": torch.tensor(generator.rate)}
    _track(losses.discriminator, True)
    if losses.discriminator is not None and losses.adversarial_active(state.step):
        discriminator = state.optimizers["discriminator"]
        discriminator.begin(state.step)
        with runtime.autocast():
            loss, parts = losses.discriminator_loss(images, reconstruction.images.detach(), state.step)
        state.backward(loss)
        ranks.average(discriminator.gradients)
        state.update("discriminator", clip=settings.clip)
        values |= {"discriminator_loss": loss, **parts}
    return good, values


def windows(images: Tensor, positions: Sequence[int], side: int | None, seed: int) -> Tensor:
    """A random window (b, c, side, side) of each image, keyed by its position; the images where `side` is None or not smaller.

    The networks are convolutional, so more and smaller pictures a second teach them the same (the paper, too, trains on crops).
    """
    height, width = images.shape[2:]
    if side is None or side >= min(height, width):
        return images
    draws = random.uniform(random.generators(seed, f"{STAGE}/window", positions), (2,))
    corners = (draws * torch.tensor([height - side + 1, width - side + 1])).long().tolist()
    return torch.stack([row[:, y : y + side, x : x + side] for row, (y, x) in zip(images, corners, strict=True)])


def _posterior_noise(autoencoder: Autoencoder, images: Tensor, batch: Batch, seed: int) -> Tensor:
    height, width = images.shape[2:]
    keys = random.generators(seed, f"{STAGE}/posterior", batch.positions.tolist())
    return random.normal(keys, autoencoder.latent_shape((height, width)))


def _track(module: nn.Module | None, on: bool) -> None:
    """The discriminator's own gradients are of no use while the autoencoder is updated."""
    if module is not None:
        module.requires_grad_(on)


@torch.no_grad()
def psnr(autoencoder: Autoencoder, pictures: Sequence[Batch], runtime: Runtime, ranks: Ranks | None = None) -> float:
    """The mean peak signal-to-noise ratio in dB of the reconstructions of held-out images, which several ranks share."""
    autoencoder.eval()
    ranks = ranks or Ranks()
    total, count = 0.0, 0
    for batch in pictures:
        own = ranks.rows(len(batch))
        images = batch.images[own.start : own.stop].to(runtime.device)
        with runtime.autocast():
            reconstructed = autoencoder.decode(autoencoder.encode(images))
        error = (reconstructed.float().clamp(-1, 1) - images).square().mean(dim=(1, 2, 3))
        total += float((10.0 * torch.log10(4.0 / error.clamp(min=1e-10))).sum())  # the range of [-1, 1] is 2
        count += len(own)
    total, seen = ranks.total([total, count])
    return total / seen if seen else math.nan


def pictures_only() -> ConditionerSet:
    """No conditioner: for loops that read images alone."""
    return ConditionerSet({}, vector_width=1)
