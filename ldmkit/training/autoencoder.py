"""Stage one: the autoencoder against a pixel, a perceptual and an adversarial loss (arXiv 2112.10752, equation 25)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldmkit import random
from ldmkit.autoencoder import Autoencoder, AutoencoderLoss
from ldmkit.autoencoder.alarms import Alarms
from ldmkit.conditioning import Batch, ConditionerSet
from ldmkit.data import Dataset, batches
from ldmkit.training.checkpoint import Checkpoints
from ldmkit.training.ema import EMA, averaged
from ldmkit.training.log import Log
from ldmkit.training.optim import Group, Optimization
from ldmkit.training.publish import publish
from ldmkit.training.runtime import Runtime
from ldmkit.training.state import EARLY, TrainingState, diverged
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
) -> TrainingState:
    """Trains the autoencoder up to `settings.steps`, from the newest checkpoint on; it ends frozen, with its average weights.

    Args and errors as in `ldmkit.training.diffusion.train_diffusion`. `losses` holds the discriminator, whose optimizer is
    its own; until the adversarial loss starts, the discriminator stands still.
    """
    runtime = runtime or Runtime()
    autoencoder.to(runtime.device).requires_grad_(True)
    losses.to(runtime.device)
    state = begin(autoencoder, losses, settings, runtime)
    if (newest := checkpoints.newest()) is not None:
        state.resume(newest)
    loader = _loader(data, state, settings, seed, runtime)
    held_out = list(_held_out(validation, settings, seed))
    alarms = Alarms()

    with log.stage(STAGE, total=settings.steps, done=state.step, every=settings.log_every) as out:
        while state.step < settings.steps:
            batch = next(loader)
            autoencoder.train()
            torch.manual_seed(random.key(seed, f"{STAGE}/dropout-layers", state.step))
            good, values = _step(autoencoder, losses, batch, state, settings, seed, runtime)
            if good and state.ema is not None:
                state.ema.update()
            if state.diverged:
                raise _give_up(batch, state, checkpoints)
            state.advance(len(batch))
            written = out.step(state.step, values if good else {}, images=len(batch))
            for found in alarms.observe(state.step, written or {}):
                out.alarm(state.step, str(found))

            last = state.step == settings.steps
            if last or state.step % settings.validate_every == 0:
                with averaged(autoencoder, state.ema):
                    out.write(state.step, {"psnr": psnr(autoencoder, held_out, runtime)})
            if pictures is not None and (last or state.step == EARLY or state.step % settings.sample_every == 0):
                with averaged(autoencoder, state.ema):
                    pictures(state.step)
            if last or stop.requested or state.step % settings.checkpoint_every == 0:
                state.save(checkpoints)
            stop.check(f"training the autoencoder, step {state.step} of {settings.steps}")
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
        name: Optimization(
            [Group(parameters)],
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay or None,
            steps=settings.steps,
            warmup=settings.warmup,
            decay=settings.decay,
        )
        for name, parameters in sides.items()
        if parameters
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
) -> tuple[bool, dict[str, Tensor]]:
    """The autoencoder's update, then the discriminator's."""
    images = windows(batch.images, batch.positions.tolist(), settings.crop, seed).to(runtime.device)
    noise = _posterior_noise(autoencoder, images, batch, seed).to(runtime.device)
    generator = state.optimizers["generator"]
    generator.begin(state.step)
    _track(losses.discriminator, False)
    with runtime.autocast():
        reconstruction = autoencoder(images, noise)
        loss, values = losses.generator(images, reconstruction, state.step, autoencoder.last_layer)
    state.backward(loss)
    good, norm = state.update("generator", clip=settings.clip)
    values = {"loss": loss, **values, "gradient_norm": norm, "lr": torch.tensor(generator.rate)}
    _track(losses.discriminator, True)
    if losses.discriminator is not None and losses.adversarial_active(state.step):
        discriminator = state.optimizers["discriminator"]
        discriminator.begin(state.step)
        with runtime.autocast():
            loss, parts = losses.discriminator_loss(images, reconstruction.images.detach(), state.step)
        state.backward(loss)
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
def psnr(autoencoder: Autoencoder, held_out: Sequence[Batch], runtime: Runtime) -> float:
    """The mean peak signal-to-noise ratio in dB of the reconstructions of held-out images."""
    autoencoder.eval()
    values: list[Tensor] = []
    for batch in held_out:
        images = batch.images.to(runtime.device)
        with runtime.autocast():
            reconstructed = autoencoder.decode(autoencoder.encode(images))
        error = (reconstructed.float().clamp(-1, 1) - images).square().mean(dim=(1, 2, 3))
        values.append(10.0 * torch.log10(4.0 / error.clamp(min=1e-10)))  # the range of [-1, 1] is 2
    return float(torch.cat(values).mean()) if values else math.nan


def _loader(
    data: Dataset, state: TrainingState, settings: AutoencoderTrain, seed: int, runtime: Runtime
) -> Iterator[Batch]:
    steps = max(settings.steps - state.step, 0)
    start, size = state.position, settings.batch
    return batches(data, pictures_only(), start=start, batch=size, seed=seed, steps=steps, workers=runtime.workers)


def _held_out(validation: Dataset, settings: AutoencoderTrain, seed: int) -> Iterator[Batch]:
    count = min(len(validation), VALIDATION) if validation.finite else VALIDATION
    size = min(settings.batch, count)
    return batches(validation, pictures_only(), start=0, batch=size, seed=seed, steps=count // size)


def pictures_only() -> ConditionerSet:
    """No conditioner: for loops that read images alone."""
    return ConditionerSet({}, vector_width=1)


def _give_up(batch: Batch, state: TrainingState, checkpoints: Checkpoints) -> Exception:
    place = checkpoints.folder / f"diverged-{state.step:08d}"
    tensors = {"images": batch.images, "positions": batch.positions}
    publish(place, {"batch": tensors}, {"about": {"step": state.step, "stage": STAGE}}, {})
    return diverged(state.step + 1, "the autoencoder's loss", str(place))
