"""The adversarial game: what each side minimises, its balance against the reconstruction, and two regularizers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ldmkit.autoencoder.discriminator import NormType
from ldmkit.errors import UsageError
from ldmkit.plugins.ranges import Count, Decay, NotNegative, Positive

GameType = Literal["hinge", "vanilla"]
# The adaptive weight's ceiling, and what keeps its denominator from zero, in the original code.
ADAPTIVE_CEILING, ADAPTIVE_EPSILON = 1e4, 1e-4


@dataclass(frozen=True, kw_only=True)
class AdversarialOptions:
    """The patch discriminator (Isola et al. 2017), a recipe's `autoencoder.loss.adversarial`.

    Args:
        start: generator steps before which there is no game, for either side.
        weight: multiplies the adaptive weight.
        factor: multiplies both sides' terms.
        layers, channels, norm: of the `PatchDiscriminator`.
        loss: `hinge` or `vanilla`.
        r1: gamma of the gradient penalty on real images (Mescheder et al., arXiv 1801.04406, eq. 9); 0 is none.
        lecam: weight of the LeCam regularizer (Tseng et al., arXiv 2104.03310, eq. 4); 0 is none.
        lecam_decay: of the running averages it anchors to.
        condition_channels: channels of a condition the discriminator sees beside the image; 0 is none.
    """

    start: Count = 0
    weight: NotNegative = 0.5
    factor: NotNegative = 1.0
    layers: Annotated[int, Field(ge=1, le=6)] = 3
    channels: Positive = 64
    norm: NormType = "batch"
    loss: GameType = "hinge"
    r1: NotNegative = 0.0
    lecam: NotNegative = 0.0
    lecam_decay: Decay = 0.99
    condition_channels: Count = 0

    def __post_init__(self) -> None:
        if self.loss not in get_args(GameType):
            raise UsageError(f"adversarial loss is {self.loss!r}; allowed are {', '.join(get_args(GameType))}")
        for name in ("start", "weight", "factor", "r1", "lecam", "condition_channels"):
            if getattr(self, name) < 0:
                raise UsageError(f"adversarial {name} is {getattr(self, name)}; it must not be negative")
        if not 0 <= self.lecam_decay < 1:
            raise UsageError(f"adversarial lecam_decay is {self.lecam_decay}; allowed is 0 up to, but not including, 1")


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum of hinges at +1 for real logits and at -1 for fake ones; a scalar."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum of the two cross entropies (Goodfellow et al., arXiv 1406.2661); a scalar."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


GAMES = {"hinge": hinge, "vanilla": vanilla}


def adaptive_weight(reconstruction: Tensor, game: Tensor) -> Tensor:
    """|gradient of the reconstruction term| / |gradient of the game|, clamped: eq. 7 of Esser et al., arXiv 2012.09841.

    Args:
        reconstruction, game: the two gradients at the last layer's weight, of one shape.
    """
    ratio = reconstruction.norm() / (game.norm() + ADAPTIVE_EPSILON)
    return ratio.clamp(0.0, ADAPTIVE_CEILING).detach()  # type: ignore[no-any-return]


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """() mean over images (b, c, h, w) of |gradient of the summed logits|^2; `images` must require a gradient.

    Differentiable.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def lecam(real: Tensor, fake: Tensor, real_average: Tensor, fake_average: Tensor) -> Tensor:
    """Squared distance of each side's logits from the running average of the other's; a scalar."""
    return (real - fake_average).square().mean() + (fake - real_average).square().mean()


class KnownGradient(torch.autograd.Function):
    """A value whose gradient in `images` is known already, so that it is not computed a second time."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """Return `value` (a scalar)."""
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        """The known gradient (b, c, h, w) times the scalar that comes from above."""
        (gradient,) = ctx.saved_tensors
        return outputs[0] * gradient, None, None
