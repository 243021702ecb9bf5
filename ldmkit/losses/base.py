"""What an extra term of a loss is, and what it is given of a training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Generator, Tensor, nn

from ldmkit import random
from ldmkit.autoencoder import Autoencoder, Reconstruction
from ldmkit.conditioning import Batch, Conditioning
from ldmkit.denoiser import Denoiser
from ldmkit.diffusion import Diffusion


@dataclass(frozen=True, kw_only=True)
class Keyed:
    """Randomness of a term: row i depends on the run's seed, the term's name, what it is for, and positions[i] alone.

    positions: (b,) int64, the number of each sample since the start of the run. step: optimizer steps done.
    """

    name: str
    seed: int
    step: int
    positions: Tensor

    def generators(self, purpose: str) -> list[Generator]:
        """One generator a row, on the CPU."""
        return random.generators(self.seed, f"losses/{self.name}/{purpose}", self.positions.tolist())


@dataclass(frozen=True, kw_only=True)
class AutoencoderPass(Keyed):
    """A training pass of stage one.

    images: (b, c, h, w) in [-1, 1]. reconstruction: what the autoencoder made of them: `images` (b, c, h, w), `posterior` (its
    `mean` is (b, z, h / f, w / f)), `terms` of its regularizer. autoencoder: for another pass, under the same gradient.
    """

    autoencoder: Autoencoder
    images: Tensor
    reconstruction: Reconstruction


@dataclass(frozen=True, kw_only=True)
class DiffusionPass(Keyed):
    """A training pass of stage two.

    autoencoder: stage one's, frozen; gradients pass through its `decode`.
    batch: its `images` (b, c, h, w) are the clean ones (none where latents come from the cache), `prepared` the conditions.
    latents, noise, noisy: (b, c, h, w); latents are clean and scaled. timesteps: (b,).
    conditioning: what the denoiser read, conditions dropped where training drops them.
    output: (b, c, h, w), the prediction, as `diffusion.prediction` has it.
    features: layer name -> what that layer of the denoiser put out in this pass, for the layers that the term asks for.
    """

    autoencoder: Autoencoder
    denoiser: Denoiser
    diffusion: Diffusion
    batch: Batch
    latents: Tensor
    noise: Tensor
    noisy: Tensor
    timesteps: Tensor
    conditioning: Conditioning
    output: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def predict(self, conditioning: Conditioning | None = None, *, noisy: Tensor | None = None) -> Tensor:
        """Another prediction (b, c, h, w) at the same timesteps: of other conditions, or of other noisy latents."""
        conditioning = self.conditioning if conditioning is None else conditioning
        result: Tensor = self.denoiser(self.noisy if noisy is None else noisy, self.timesteps, **conditioning.kwargs())
        return result

    def x0(self) -> Tensor:
        """The clean latents (b, c, h, w) that the prediction means."""
        return self.diffusion.to_x0(self.output, self.noisy, self.timesteps)

    def errors(self, output: Tensor) -> Tensor:
        """The unweighted loss (b,) of a prediction, against this pass's target."""
        return self.diffusion.terms(output, self.latents, self.noise, self.timesteps)["simple"]


class Loss(nn.Module, ABC):
    """A term of a stage's loss, beside the stage's own: a subclass is an `AutoencoderTerm` or a `DiffusionTerm`.

    Options are the constructor's keyword-only, annotated parameters; `latent: LatentSpec` is filled in where it is annotated so.
    Parameters of its own are trained with the stage, in its optimizer and its checkpoints, and are no part of the model.

    Attributes:
        frozen: submodules that are never trained: in eval mode, without gradient, not in optimizer or checkpoint.
    """

    frozen: tuple[str, ...] = ()

    def load_pretrained(self) -> None:
        """Fill `frozen` submodules from outside. Called once, before training."""


class AutoencoderTerm(Loss):
    """A term of stage one's loss."""

    @abstractmethod
    def forward(self, given: AutoencoderPass) -> Tensor:
        """A scalar, added to the mean loss of the batch. Deterministic but for `given.generators`."""


class DiffusionTerm(Loss):
    """A term of stage two's loss.

    Attributes:
        layers: names of the denoiser's layers whose features it reads (`Denoiser.layer`).
    """

    layers: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, given: DiffusionPass) -> Tensor:
        """The loss of each row (b,), added to that of the row. Deterministic but for `given.generators`."""
