"""What stage one minimises: reconstruction in pixels and features, the regularizer's term, and an adversarial game."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

import torch
from torch import Generator, Tensor, nn

from ldmkit.autoencoder import adversarial as game
from ldmkit.autoencoder import all_reduce, equivariance
from ldmkit.autoencoder.adversarial import AdversarialOptions
from ldmkit.autoencoder.discriminator import PatchDiscriminator
from ldmkit.autoencoder.equivariance import EquivarianceOptions
from ldmkit.autoencoder.perceptual import LEAST_SIZE, Backbone, Perceptual
from ldmkit.autoencoder.posterior import Reconstruction
from ldmkit.errors import UsageError
from ldmkit.plugins.ranges import InRecipe, NotNegative

PixelType = Literal["l1", "l2"]
Reduction = Literal["mean", "sum"]
Parts = dict[str, Tensor]
Options = TypeVar("Options")


@dataclass(frozen=True, kw_only=True)
class PerceptualOptions:
    """LPIPS (Zhang et al. 2018) in a recipe's `autoencoder.loss.perceptual`.

    net: the backbone, `alex`, `vgg` or `squeeze`.
    weights: where the backbone's come from: `imagenet`, a file, or `random`, which needs no download (see `Perceptual`).
    weight: relative to the pixel term.
    """

    net: Backbone = "vgg"
    weights: str = "imagenet"
    weight: NotNegative = 1.0


class AutoencoderLoss(nn.Module):
    """The loss of an autoencoder and the discriminator it plays against.

    With c h w entries an image, n the mean over all entries of the pixel term plus the perceptual one, and s the
    log-variance, `mean` is

        n / exp(s) + s + kl * KL / (c h w) + codebook * VQ + (adaptive weight) * weight * game

    and `sum` is c h w times that: what each image loses in all. A KL weight therefore means the same in both, and the
    released settings are `sum` with 1e-6 for KL autoencoders, `mean` with 1 for VQ ones.

    Args:
        image_channels: of the images.
        pixel: `l1` or `l2`.
        reduction: `mean` or `sum`; matters beside a gradient clip, an optimizer's epsilon and the ceiling of the adaptive weight.
        perceptual: options (`PerceptualOptions`), or None for none.
        adversarial: options (`AdversarialOptions`), or None for none.
        equivariance: options (`EquivarianceOptions`), or None for none.
        kl: weight of the KL divergence, in nats an image.
        codebook: weight of the quantizer's terms.
        learn_logvar: make the log-variance a parameter of the generator (`generator_parameters`).
        logvar: its value, or where it starts.

    Raises:
        UsageError: an option unknown or out of range.
    """

    lecam_real: Tensor
    lecam_fake: Tensor

    def __init__(
        self,
        *,
        image_channels: int = 3,
        pixel: PixelType = "l1",
        reduction: Reduction = "mean",
        perceptual: Annotated[Mapping[str, Any] | PerceptualOptions | None, InRecipe(PerceptualOptions | None)] = None,
        adversarial: Annotated[
            Mapping[str, Any] | AdversarialOptions | None, InRecipe(AdversarialOptions | None)
        ] = None,
        equivariance: Annotated[
            Mapping[str, Any] | EquivarianceOptions | None, InRecipe(EquivarianceOptions | None)
        ] = None,
        kl: NotNegative = 1e-6,
        codebook: NotNegative = 1.0,
        learn_logvar: bool = False,
        logvar: float = 0.0,
    ) -> None:
        super().__init__()
        _check(pixel, reduction, kl, codebook)
        self.pixel, self.reduction, self.kl, self.codebook = pixel, reduction, kl, codebook
        self.logvar = nn.Parameter(torch.tensor(float(logvar)), requires_grad=learn_logvar)
        self.perceptual_options = _options(PerceptualOptions, perceptual)
        self.adversarial_options = _options(AdversarialOptions, adversarial)
        self.equivariance_options = _options(EquivarianceOptions, equivariance)
        self.perceptual: Perceptual | None = None
        if (features := self.perceptual_options) is not None:
            self.perceptual = Perceptual(features.net, features.weights)
        self.discriminator: PatchDiscriminator | None = None
        if (play := self.adversarial_options) is not None:
            channels = image_channels + play.condition_channels
            self.discriminator = PatchDiscriminator(
                channels, layers=play.layers, channels=play.channels, norm=play.norm
            )
        # Running averages of the logits, for LeCam.
        self.register_buffer("lecam_real", torch.zeros(()))
        self.register_buffer("lecam_fake", torch.zeros(()))

    def generator_parameters(self) -> list[nn.Parameter]:
        """What the autoencoder's optimizer must hold besides the autoencoder: the log-variance, if it is learned."""
        return [self.logvar] if self.logvar.requires_grad else []

    def adversarial_active(self, step: int) -> bool:
        """Whether the adversarial game is on at generator step `step` (from 0): before that, skip the discriminator's step."""
        options = self.adversarial_options
        return options is not None and options.factor > 0 and step >= options.start

    def generator(
        self,
        images: Tensor,
        reconstruction: Reconstruction,
        step: int,
        last_layer: Tensor,
        *,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Parts]:
        """The autoencoder's loss (a scalar) and its parts, detached.

        Args:
            images: (b, c, h, w) in [-1, 1].
            reconstruction: what the autoencoder's forward returned.
            step: generator steps taken so far; both optimizers together count once.
            last_layer: the autoencoder's `last_layer`; the adaptive weight is 0 where it asks for no gradient (validation).
            condition: (b, condition_channels, h, w) for a conditional discriminator.
        """
        entries = images[0].numel()
        whole = entries if self.reduction == "sum" else 1
        error, parts = self._error(images, reconstruction.images)
        nll = whole * (error * torch.exp(-self.logvar) + self.logvar)
        regularizer, own = self._regularizer(reconstruction.terms, entries)
        parts |= own
        if self.adversarial_active(step):
            judged = self._judge(reconstruction.images, condition)
            adversarial = -judged.mean()
            loss = self._balance(reconstruction.images, error, nll, whole, adversarial, last_layer, parts)
            parts["adversarial"] = adversarial
        else:
            loss = nll
        loss = loss + whole * regularizer
        parts |= {"nll": nll, "logvar": self.logvar, "loss": loss}
        return loss, {name: part.detach() for name, part in parts.items()}

    def discriminator_loss(
        self, images: Tensor, reconstructed: Tensor, step: int, *, condition: Tensor | None = None
    ) -> tuple[Tensor, Parts]:
        """The discriminator's loss (a scalar) and its parts, detached; a plain zero while the game is off (`adversarial_active`).

        Args:
            images: real images (b, c, h, w) in [-1, 1].
            reconstructed: what the autoencoder made of them; no gradient goes there.
            step: generator steps taken so far.
            condition: as in `generator`.
        """
        options = self.adversarial_options
        if options is None or not self.adversarial_active(step):
            return images.new_zeros(()), {}
        penalised = options.r1 > 0 and torch.is_grad_enabled()
        real_images = images.detach().requires_grad_(True) if penalised else images
        real, fake = self._judge(real_images, condition), self._judge(reconstructed.detach(), condition)
        loss = game.GAMES[options.loss](real, fake)
        right = 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())
        parts = {"discriminator": loss, "real": real.mean(), "fake": fake.mean(), "accuracy": right}
        if penalised:
            parts["r1"] = game.gradient_penalty(real, real_images)
            loss = loss + 0.5 * options.r1 * parts["r1"]
        if options.lecam > 0:
            self._follow(real, fake, options.lecam_decay)
            parts["lecam"] = game.lecam(real, fake, self.lecam_real, self.lecam_fake)
            loss = loss + options.lecam * parts["lecam"]
        return options.factor * loss, {name: part.detach() for name, part in parts.items()}

    def equivariance_active(self, step: int) -> bool:
        """Whether generator step `step` (from 0) has the equivariance term."""
        options = self.equivariance_options
        return options is not None and options.weight > 0 and step % options.every == 0

    def equivariance(
        self, decode: Callable[[Tensor], Tensor], images: Tensor, latents: Tensor, generator: Generator
    ) -> tuple[Tensor, Parts]:
        """The equivariance term (a scalar), weighted, and its part, detached. Images that become too small for the perceptual
        backbone are compared by their pixels alone.

        Args:
            decode: latents to images, with gradients.
            images: (b, c, h, w) in [-1, 1], of sides that the autoencoder divides.
            latents: what the encoder made of them, with gradients.
            generator: of the transformation, one for the batch.
        """
        options = self.equivariance_options
        assert options is not None
        height, width = latents.shape[-2:]
        transformation = equivariance.draw(options, (height, width), generator)
        expected, decoded = equivariance.pair(decode, images, latents, transformation)
        error = self._pixel(expected, decoded)
        perceptual, features = self.perceptual, self.perceptual_options
        if perceptual and features and min(expected.shape[-2:]) >= LEAST_SIZE[features.net]:
            error = error + features.weight * perceptual(expected, decoded).mean()
        whole = images[0].numel() if self.reduction == "sum" else 1
        return options.weight * options.every * whole * error, {"equivariance": error.detach()}

    def _error(self, images: Tensor, reconstructed: Tensor) -> tuple[Tensor, Parts]:
        """Pixel term plus weighted perceptual term, both means."""
        pixel = self._pixel(images, reconstructed)
        if self.perceptual is None or self.perceptual_options is None:
            return pixel, {"pixel": pixel}
        perceptual = self.perceptual(images, reconstructed).mean()
        return pixel + self.perceptual_options.weight * perceptual, {"pixel": pixel, "perceptual": perceptual}

    def _pixel(self, images: Tensor, reconstructed: Tensor) -> Tensor:
        difference = images - reconstructed
        return (difference.abs() if self.pixel == "l1" else difference.square()).mean()

    def _regularizer(self, terms: Mapping[str, Tensor], entries: int) -> tuple[Tensor, Parts]:
        """The autoencoder's own terms, weighted, in the scale of `mean`; reports pass through."""
        total = torch.zeros((), device=self.logvar.device)
        if "kl" in terms:
            total = total + self.kl * terms["kl"] / entries
        if "codebook" in terms:
            total = total + self.codebook * terms["codebook"]
        return total, dict(terms)

    def _balance(
        self,
        images: Tensor,
        error: Tensor,
        nll: Tensor,
        whole: int,
        adversarial: Tensor,
        last_layer: Tensor,
        parts: Parts,
    ) -> Tensor:
        """Reconstruction term plus adaptively weighted game.

        Both gradients are followed to the images once, and used twice: on to the last layer for the weight, and as the loss's
        own gradient. Asking autograd for each would run the perceptual network and the discriminator backwards twice.
        """
        options = self.adversarial_options
        assert options is not None
        if not (torch.is_grad_enabled() and images.requires_grad and last_layer.requires_grad):
            parts["adaptive_weight"] = torch.zeros((), device=images.device)
            return nll
        (down,) = torch.autograd.grad(error, images)
        down = down * (whole * torch.exp(-self.logvar.detach()))
        (up,) = torch.autograd.grad(adversarial, images)
        at_last = [torch.autograd.grad(images, last_layer, part, retain_graph=True)[0] for part in (down, up)]
        weight = game.adaptive_weight(*all_reduce.mean(torch.stack(at_last)))
        parts["adaptive_weight"] = weight
        weight = weight * options.weight * options.factor
        value = (nll + weight * adversarial).detach()
        known: Tensor = game.KnownGradient.apply(images, value, down + weight * up)
        if not self.logvar.requires_grad:
            return known
        # The log-variance's gradient, without counting its value a second time.
        share = whole * (error.detach() * torch.exp(-self.logvar) + self.logvar)
        return known + share - share.detach()

    def _judge(self, images: Tensor, condition: Tensor | None) -> Tensor:
        assert self.discriminator is not None
        assert self.adversarial_options is not None
        wanted = self.adversarial_options.condition_channels
        given = 0 if condition is None else condition.shape[1]
        if wanted != given:
            raise UsageError(f"the discriminator's condition has {given} channels; condition_channels is {wanted}")
        judged = images if condition is None else torch.cat([images, condition], dim=1)
        logits: Tensor = self.discriminator(judged)
        return logits

    @torch.no_grad()
    def _follow(self, real: Tensor, fake: Tensor, decay: float) -> None:
        if self.training:
            self.lecam_real.lerp_(all_reduce.mean(real.mean()).to(self.lecam_real), 1 - decay)
            self.lecam_fake.lerp_(all_reduce.mean(fake.mean()).to(self.lecam_fake), 1 - decay)


def make_loss(image_channels: int = 3, **options: Any) -> AutoencoderLoss:
    """The loss of a recipe's `autoencoder.loss`.

    Raises:
        UsageError: an option unknown or out of range.
        OfflineError: perceptual weights that would have to be downloaded.
    """
    try:
        return AutoencoderLoss(image_channels=image_channels, **options)
    except TypeError as error:
        raise UsageError(f"the autoencoder's loss does not take these options: {error}") from error


def _options(kind: type[Options], given: Mapping[str, Any] | Options | None) -> Options | None:
    return kind(**given) if isinstance(given, Mapping) else given


def _check(pixel: str, reduction: str, kl: float, codebook: float) -> None:
    if pixel not in get_args(PixelType):
        raise UsageError(f"pixel is {pixel!r}; allowed are {', '.join(get_args(PixelType))}")
    if reduction not in get_args(Reduction):
        raise UsageError(f"reduction is {reduction!r}; allowed are {', '.join(get_args(Reduction))}")
    if kl < 0 or codebook < 0:
        raise UsageError(f"kl is {kl} and codebook is {codebook}; neither may be negative")
