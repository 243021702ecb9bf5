"""The autoencoder whose decoder quantises: the diffusion stage sees the latent before that."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack, final

import torch
from torch import Tensor, nn

from ldmkit.autoencoder.base import Autoencoder
from ldmkit.autoencoder.config import NetworkConfig, NetworkOptions
from ldmkit.autoencoder.networks import Decoder, Encoder, start_as
from ldmkit.autoencoder.posterior import Posterior, Reconstruction
from ldmkit.autoencoder.quantizer import Quantizer
from ldmkit.plugins.ranges import Decay, NotNegative, Positive


@final
class VQAutoencoder(Autoencoder):
    """Vector-quantised (arXiv 2112.10752, section 3.1): `encode` gives the latent before quantisation, `decode` quantises.

    Args:
        codebook: number of codes.
        commitment: weight of the commitment term.
        swapped: the released models' weights, with `commitment` on the codebook term.
        ema: decay of a codebook kept by running averages; None learns it by gradient.
        revive: training steps after which an unused code moves onto a latent; None is never.
        network: the options of `NetworkConfig`.
    """

    passes_on: ClassVar[type] = NetworkConfig

    def __init__(
        self,
        *,
        codebook: Positive = 8192,
        commitment: NotNegative = 0.25,
        swapped: bool = False,
        ema: Decay | None = None,
        revive: Positive | None = None,
        **network: Unpack[NetworkOptions],
    ) -> None:
        options = NetworkConfig(**network)
        width = options.latent_channels
        super().__init__(
            image_channels=options.image_channels, latent_channels=width, factor=options.downsample, pad=options.pad
        )
        self.network = options
        self.encoder = Encoder(options, width)
        self.decoder = Decoder(options)
        self.quantize = Quantizer(codebook, width, commitment=commitment, swapped=swapped, ema=ema, revive=revive)
        self.quant_conv = nn.Conv2d(width, width, 1)
        self.post_quant_conv = nn.Conv2d(width, width, 1)
        if options.shortcut:
            start_as(self.quant_conv, torch.eye(width))
            start_as(self.post_quant_conv, torch.eye(width))

    @property
    def config(self) -> dict[str, Any]:
        """`type` and every option, for `make`."""
        quantize = self.quantize
        own = {"codebook": quantize.codes, "commitment": quantize.commitment, "swapped": quantize.swapped}
        return {"type": "vq", **self.network.to_dict(), **own, "ema": quantize.ema, "revive": quantize.revive}

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last convolution."""
        return self.decoder.conv_out.weight

    def codes(self, latents: Tensor) -> Tensor:
        """The codebook index at each position of scaled latents: (b, c, h, w) -> (b, h, w) int64."""
        self._check_latents(latents)
        return self.quantize.indices(self.unscale(latents))

    def decode_codes(self, indices: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
        """Images of codebook indices (b, h, w), cropped to `size` if given.

        Raises:
            UsageError: an index outside of the codebook, or not an integer.
        """
        return self._crop(self.decoder(self.post_quant_conv(self.quantize.lookup(indices))), size)

    def decode_continuous(self, latents: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
        """Images of scaled latents without quantising them first."""
        self._check_latents(latents)
        return self._crop(self.decoder(self.post_quant_conv(self.unscale(latents))), size)

    def decoder_input(self, latents: Tensor) -> Tensor:
        """What the decoder's network reads for scaled latents: unscaled, quantised, projected. (b, c, h, w)."""
        self._check_latents(latents)
        return self.post_quant_conv(self.quantize.quantize(self.unscale(latents)))  # type: ignore[no-any-return]

    def posterior_from(self, features: Tensor) -> Posterior:
        """The latent before quantisation, from what the encoder's network gave, (b, c, h, w)."""
        return Posterior(self.quant_conv(features))

    def _posterior(self, images: Tensor) -> Posterior:
        return self.posterior_from(self.encoder(images))

    def _decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(self.quantize.quantize(z)))  # type: ignore[no-any-return]

    def _reconstruct(self, images: Tensor, noise: Tensor | None) -> Reconstruction:
        posterior = self._posterior(images)
        quantized = self.quantize(posterior.mean)
        return Reconstruction(self.decoder(self.post_quant_conv(quantized.latents)), posterior, quantized.terms)
