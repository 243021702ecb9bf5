"""The autoencoder with a Gaussian posterior, held near the unit normal by a slight KL penalty."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack, final

import torch
from torch import Tensor, nn

from ldmkit.autoencoder.base import Autoencoder
from ldmkit.autoencoder.config import NetworkConfig, NetworkOptions
from ldmkit.autoencoder.networks import Decoder, Encoder, start_as
from ldmkit.autoencoder.posterior import Posterior, Reconstruction

START_LOGVAR = -6.0


@final
class KLAutoencoder(Autoencoder):
    """KL-regularised (arXiv 2112.10752, section 3.1): `encode` gives a sample of the posterior with a generator, else its mode.

    Args:
        network: the options of `NetworkConfig`.
    """

    passes_on: ClassVar[type] = NetworkConfig

    def __init__(self, **network: Unpack[NetworkOptions]) -> None:
        config = NetworkConfig(**network)
        width = config.latent_channels
        super().__init__(
            image_channels=config.image_channels, latent_channels=width, factor=config.downsample, pad=config.pad
        )
        self.network = config
        self.encoder = Encoder(config, 2 * width)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * width, 2 * width, 1)
        self.post_quant_conv = nn.Conv2d(width, width, 1)
        if config.shortcut:
            start_as(self.quant_conv, torch.eye(2 * width))
            start_as(self.post_quant_conv, torch.eye(width))
        # The posterior starts narrow: at a log-variance of 0 its noise drowns the means for the first hundreds of steps.
        nn.init.constant_(self.quant_conv.get_parameter("bias")[width:], START_LOGVAR)

    @property
    def config(self) -> dict[str, Any]:
        """`type` and every option, for `make`."""
        return {"type": "kl", **self.network.to_dict()}

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last convolution, (image_channels, channels, 3, 3)."""
        return self.decoder.conv_out.weight

    def decoder_input(self, latents: Tensor) -> Tensor:
        """What the decoder's network reads for scaled latents: unscaled, projected. (b, c, h, w)."""
        self._check_latents(latents)
        return self.post_quant_conv(self.unscale(latents))  # type: ignore[no-any-return]

    def posterior_from(self, features: Tensor) -> Posterior:
        """q(z|x) from what the encoder's network gave, (b, 2 c, h, w)."""
        return Posterior.from_moments(self.quant_conv(features))

    def _posterior(self, images: Tensor) -> Posterior:
        return self.posterior_from(self.encoder(images))

    def _decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))  # type: ignore[no-any-return]

    def _reconstruct(self, images: Tensor, noise: Tensor | None) -> Reconstruction:
        posterior = self._posterior(images)
        z = posterior.mode() if noise is None else posterior.sample(noise)
        return Reconstruction(self._decode(z), posterior, {"kl": posterior.kl().mean()})
