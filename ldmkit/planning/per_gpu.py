"""What each of several GPUs holds and sends while the diffusion model is trained: the arithmetic of `ldmkit plan --gpus`.

Weights are float32 (bf16 is autocast's). Traffic is what a GPU sends, and as much as it receives, in ring algorithms: an
all-gather or a reduce-scatter of a tensor passes on (n - 1) / n of its bytes, an all-reduce is one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from ldmkit.latent_diffusion import LatentDiffusion
    from ldmkit.recipe import Recipe, Train

FLOAT = 4  # bytes
MOMENTS = {
    "adamw": 2 * FLOAT,
    "adam": 2 * FLOAT,
    "adamw-8bit": 2,
}  # bytes a trained parameter; scales of 8-bit blocks left out
HALF = 0.5  # of the activations' bytes, in 16 bits; those of norms and of the loss stay in 32
BACKWARD = 3  # forward and backward cost three times what forward alone does
AHEAD = 2  # stages of the UNet whose weights are gathered at a time: the one at work, and the next


@dataclass(frozen=True)
class Load:
    """What is spread over the GPUs; numbers of parameters.

    Args:
        trained: of denoiser and conditioners.
        frozen: of conditioners.
        autoencoder: frozen here, and whole everywhere.
        root, root_trained: of those above (all, and the trained ones) that shards gather for a whole step: everything but the
            UNet's stages.
        stage: of the UNet's largest stage.
        activations: bytes that the backward pass of one picture needs of the UNet and of trained conditioners, in float32.
        latent: bytes of one picture's latent.
        flops: of their forward pass of one picture.
    """

    trained: int
    frozen: int
    autoencoder: int
    root: int
    root_trained: int
    stage: int
    activations: int
    latent: int
    flops: int


@dataclass(frozen=True)
class Holding:
    """Bytes on one GPU, and bytes it sends in one optimizer step."""

    parameters: int
    gradients: int
    moments: int
    averages: int
    gathered: int  # weights and gradients of parts that are whole for the time they are needed
    activations: int
    sent: int

    @property
    def memory(self) -> int:
        """All that is held."""
        return sum(value for name, value in asdict(self).items() if name != "sent")


@dataclass(frozen=True)
class Share:
    """One of `gpus` GPUs. `rows`: pictures of each batch, fractional where they cannot be shared equally; `flops` a step."""

    gpus: int
    rows: float
    flops: int
    copies: Holding
    shards: Holding

    @property
    def equal(self) -> bool:
        """Whether the batch can be shared by so many."""
        return self.rows == int(self.rows)

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "copies": {**asdict(self.copies), "memory": self.copies.memory},
            "shards": {**asdict(self.shards), "memory": self.shards.memory},
        }


def load(model: LatentDiffusion, recipe: Recipe, *, activations: int, latent: int, flops: int) -> Load:
    """The load of a model, which may be on meta."""
    unet = model.denoiser
    stages = [_count(stage) for stage in unet.blocks()]
    frozen = sum(_frozen(conditioner) for conditioner in model.conditioners.values())
    every = sum(_count(part) for part in (unet, model.conditioners, model.diffusion))
    return Load(
        trained=every - frozen,
        frozen=frozen,
        autoencoder=_count(model.autoencoder),
        root=every - sum(stages),
        root_trained=every - frozen - sum(stages),
        stage=max(stages),
        activations=activations,
        latent=latent,
        flops=flops,
    )


def held(parameters: Iterable[nn.Parameter], settings: Train) -> int:
    """Bytes of weights, and of gradients, moments and averages of those that are trained, on one device."""
    averages = (settings.ema is not None) + 2 * (settings.post_hoc is not None)
    trained = 2 * FLOAT + MOMENTS[settings.optimizer] + FLOAT * averages
    return sum(p.numel() * (trained if p.requires_grad else FLOAT) for p in parameters)


def share(load: Load, recipe: Recipe, gpus: int) -> Share:
    """What one of `gpus` GPUs holds and sends."""
    settings = recipe.train
    rows = settings.batch / gpus
    half = HALF if recipe.runtime.precision != "fp32" else 1.0  # `auto` is bf16 on a GPU
    at_once = -(-settings.batch // (gpus * settings.accumulate))
    averages = (settings.ema is not None) + 2 * (settings.post_hoc is not None)
    parts = min(settings.accumulate, max(settings.batch // gpus, 1))
    passed_on = (gpus - 1) / gpus
    common = {"activations": int(half * at_once * load.activations) + at_once * load.latent}
    copies = Holding(
        parameters=FLOAT * (load.trained + load.frozen + load.autoencoder),
        gradients=FLOAT * load.trained,
        moments=MOMENTS[settings.optimizer] * load.trained,
        averages=FLOAT * averages * load.trained,
        gathered=0,
        sent=int(2 * passed_on * FLOAT * load.trained),
        **common,
    )
    weights, trained = load.trained + load.frozen, load.trained
    shards = Holding(
        parameters=-(-FLOAT * weights // gpus) + FLOAT * load.autoencoder,
        gradients=-(-FLOAT * trained // gpus),
        moments=-(-MOMENTS[settings.optimizer] * trained // gpus),
        averages=-(-FLOAT * averages * trained // gpus),
        gathered=FLOAT * (load.root + load.root_trained + (AHEAD + 1) * load.stage) if gpus > 1 else 0,
        sent=int(parts * passed_on * FLOAT * (2 * weights + trained)),
        **common,
    )
    return Share(gpus, rows, int(BACKWARD * load.flops * rows), copies, shards)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _frozen(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if not parameter.requires_grad)
