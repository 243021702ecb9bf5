"""No autoencoder: diffusion in pixels, the paper's LDM-1."""

from __future__ import annotations

from typing import Annotated, Any, final

from pydantic import Field
from torch import Tensor

from ldmkit.autoencoder.base import Autoencoder
from ldmkit.autoencoder.config import MOST_IMAGE_CHANNELS
from ldmkit.autoencoder.posterior import Posterior, Reconstruction
from ldmkit.errors import UsageError


@final
class IdentityAutoencoder(Autoencoder):
    """The image is the latent; there is nothing to train.

    Args:
        image_channels: 1 to 16.

    Raises UsageError for another number of channels.
    """

    def __init__(self, *, image_channels: Annotated[int, Field(ge=1, le=MOST_IMAGE_CHANNELS)] = 3) -> None:
        if not 1 <= image_channels <= MOST_IMAGE_CHANNELS:
            raise UsageError(f"image_channels is {image_channels}; allowed are 1 to {MOST_IMAGE_CHANNELS}")
        super().__init__(image_channels=image_channels, latent_channels=image_channels, factor=1)

    @property
    def config(self) -> dict[str, Any]:
        """`type` and every option, for `make`."""
        return {"type": "identity", "image_channels": self.image_channels}

    @property
    def last_layer(self) -> Tensor:
        """There is none.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "the identity autoencoder has no weights to train", hint="leave out autoencoder.train and autoencoder.loss"
        )

    def _posterior(self, images: Tensor) -> Posterior:
        return Posterior(images)

    def _decode(self, z: Tensor) -> Tensor:
        return z

    def _reconstruct(self, images: Tensor, noise: Tensor | None) -> Reconstruction:
        return Reconstruction(images, Posterior(images), {})
