"""The contract of every autoencoder: images in, scaled latents out, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ldmkit import random
from ldmkit.autoencoder.posterior import Posterior, Reconstruction
from ldmkit.autoencoder.statistics import LatentStatistics, StatisticsBuffers, weights_hash
from ldmkit.errors import CheckpointError, DataError, UsageError


class Autoencoder(nn.Module, ABC):
    """E and D. Images are (b, image_channels, h, w) in [-1, 1]; latents (b, latent_channels, h / factor, w / factor).

    Latents leave `encode` scaled, (z - shift) * scale, and `decode` undoes it. The scale is a measured thing: see
    `set_statistics`. Without a generator everything is deterministic.
    """

    latent_shift: Tensor
    latent_scale: Tensor

    def __init__(self, *, image_channels: int, latent_channels: int, factor: int, pad: bool = False) -> None:
        super().__init__()
        self.image_channels, self.latent_channels, self.factor, self.pad = image_channels, latent_channels, factor, pad
        self.register_buffer("latent_shift", torch.zeros(latent_channels))
        self.register_buffer("latent_scale", torch.ones(latent_channels))
        self.latent_statistics = StatisticsBuffers(latent_channels)
        self.register_load_state_dict_pre_hook(_default_scale)  # type: ignore[no-untyped-call]

    # -- what each kind says for itself

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """`type` and every constructor option, as JSON has them: `make(**config)` builds an equal network."""

    @property
    @abstractmethod
    def last_layer(self) -> Tensor:
        """The weight, (out, in, k, k) of a convolution, at which the adaptive adversarial weight measures gradients."""

    @abstractmethod
    def _posterior(self, images: Tensor) -> Posterior: ...

    @abstractmethod
    def _decode(self, z: Tensor) -> Tensor: ...

    @abstractmethod
    def _reconstruct(self, images: Tensor, noise: Tensor | None) -> Reconstruction: ...

    # -- what all share

    def posterior(self, images: Tensor) -> Posterior:
        """q(z|x) of images (b, c, h, w), unscaled.

        Raises:
            UsageError: wrong number of channels or, without `pad`, a size that is no multiple of `factor`.
            DataError: images with values that are not finite.
        """
        return self._posterior(self.fit(images))

    def encode(self, images: Tensor, generator: Sequence[Generator] | Generator | None = None) -> Tensor:
        """Scaled latents of images: a sample of the posterior, or its mode without a generator.

        Args:
            images: (b, image_channels, h, w) in [-1, 1].
            generator: one a row, or one for the batch, on the CPU.
        """
        return self.draw(self.posterior(images), generator)

    def draw(self, posterior: Posterior, generator: Sequence[Generator] | Generator | None = None) -> Tensor:
        """Scaled latents (b, c, h, w) of a posterior: a sample, or its mode without a generator (see `encode`)."""
        if posterior.logvar is None or generator is None:
            return self.scale(posterior.mode())
        shape = posterior.mean.shape
        if isinstance(generator, Generator):
            noise = torch.randn(shape, generator=generator)
        else:
            noise = random.normal(generator, shape[1:])
        return self.scale(posterior.sample(noise))

    def decode(self, latents: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
        """Images (b, image_channels, factor h, factor w) of scaled latents, cropped to `size` (h, w) if one is given.

        Raises:
            UsageError: wrong number of channels, or a `size` larger than what the latents hold.
        """
        self._check_latents(latents)
        return self._crop(self._decode(self._own(self.unscale(latents))), size)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """A training pass: reconstruct images (b, c, h, w) through the posterior's mode, or a sample if there is noise.

        Args:
            noise: unit normal, of the latent's shape (`latent_shape`); only a KL autoencoder reads it.

        Raises UsageError and DataError for images as `fit` does.
        """
        found = self._reconstruct(self.fit(images), noise)
        height, width = images.shape[-2:]
        return Reconstruction(self._crop(found.images, (height, width)), found.posterior, found.terms)

    def scale(self, z: Tensor) -> Tensor:
        """(z - shift) * scale; (b, c, h, w)."""
        return (z - _column(self.latent_shift, z)) * _column(self.latent_scale, z)

    def unscale(self, latents: Tensor) -> Tensor:
        """z / scale + shift; the inverse of `scale`. (b, c, h, w)."""
        return latents / _column(self.latent_scale, latents) + _column(self.latent_shift, latents)

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(latent_channels, h, w) of an image of `size` (h, w) pixels.

        Raises:
            UsageError: without `pad`, a size that is no multiple of `factor`.
        """
        self._check_size(size)
        height, width = (-(-side // self.factor) for side in size)
        return self.latent_channels, height, width

    @property
    def statistics(self) -> LatentStatistics | None:
        """What was measured over the training data, or None where nothing was."""
        return self.latent_statistics.read()

    def set_statistics(self, statistics: LatentStatistics, *, scale: str | float = "std") -> None:
        """Keep measured statistics and set shift and scale from them.

        Args:
            scale: `std`: no shift, 1 / standard deviation over all channels (as the original does, though from one batch);
                `per-channel`: each channel gets mean 0 and standard deviation 1; a number: no shift, this factor.

        Raises:
            DivergedError: a standard deviation that no scale can be made of.
        """
        shift, factor = statistics.scaling(scale)
        self.latent_shift.copy_(shift)
        self.latent_scale.copy_(factor)
        self.latent_statistics.write(statistics)

    def check_statistics(self) -> None:
        """See that the statistics, if there are any, were measured with the weights that are here now.

        Raises:
            CheckpointError: they belong to other weights.
        """
        found = self.statistics
        if found is None or not found.weights or found.weights == (here := self.weights_hash()):
            return
        raise CheckpointError(
            f"the latent's scale was measured with other autoencoder weights (hash {found.weights[:12]}) than are loaded "
            f"({here[:12]}): the diffusion model would see latents of another spread",
            hint="measure the statistics again, or load the weights they belong to",
        )

    def weights_hash(self) -> str:
        """SHA-256 of all weights, in hexadecimal; shift, scale and statistics do not enter."""
        own = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("latent_")}
        return weights_hash(own)

    # -- checks and padding

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Shift and scale stay float32 when the weights go to half precision: rounding them would change every latent."""
        exact = (self.latent_shift, self.latent_scale)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.latent_scale.dtype != exact[1].dtype:
            self.latent_shift, self.latent_scale = (tensor.to(self.latent_scale.device) for tensor in exact)
        return self

    def fit(self, images: Tensor) -> Tensor:
        """Checked images (b, image_channels, h, w); with `pad`, padded right and below to multiples of `factor`.

        Raises:
            UsageError: the images have another shape, or a side is no multiple of `factor` and `pad` is off.
            DataError: a value is NaN or infinite (looked at on the CPU only: elsewhere it would stall the device).
        """
        if images.dim() != 4 or images.shape[1] != self.image_channels:
            raise UsageError(f"images have shape {tuple(images.shape)}; expected (b, {self.image_channels}, h, w)")
        height, width = images.shape[-2:]
        self._check_size((height, width))
        # On an accelerator it would wait for the device; what comes from data is looked at before it goes there.
        looked_at = images.device.type == "cpu" and not torch.compiler.is_compiling()
        if looked_at and not torch.isfinite(images.sum()):
            raise DataError(
                "the images have values that are not finite (NaN or infinite)",
                hint="look at the data source's pictures",
            )
        return pad_to_multiple(self._own(images), self.factor)

    def _own(self, values: Tensor) -> Tensor:
        """In the dtype of the weights, where there are any."""
        own = next((parameter.dtype for parameter in self.parameters() if parameter.is_floating_point()), values.dtype)
        return values.to(own)

    def _check_size(self, size: tuple[int, int]) -> None:
        if min(size) < 1:
            raise UsageError(f"the image size is {size[0]}x{size[1]}; both sides must be at least 1")
        if not self.pad and any(side % self.factor for side in size):
            raise UsageError(
                f"the image size {size[0]}x{size[1]} is no multiple of {self.factor}, the autoencoder's down-sampling factor",
                hint=f"crop or resize to a multiple of {self.factor}, or set the autoencoder's `pad: true`",
            )

    def _check_latents(self, latents: Tensor) -> None:
        if latents.dim() != 4 or latents.shape[1] != self.latent_channels:
            raise UsageError(f"latents have shape {tuple(latents.shape)}; expected (b, {self.latent_channels}, h, w)")

    def _crop(self, images: Tensor, size: tuple[int, int] | None) -> Tensor:
        if size is None:
            return images
        height, width = images.shape[-2:]
        if size[0] > height or size[1] > width:
            raise UsageError(f"cannot crop to {size[0]}x{size[1]}: the latents decode to {height}x{width}")
        return images[..., : size[0], : size[1]]


def pad_to_multiple(images: Tensor, factor: int) -> Tensor:
    """Pad (b, c, h, w) on the right and at the bottom to multiples of `factor`: mirrored, or by repeating the edge of a
    side that is too short to be mirrored."""
    height, width = images.shape[-2:]
    down, right = -height % factor, -width % factor
    if not down and not right:
        return images
    mode = "reflect" if down < height and right < width else "replicate"
    return F.pad(images, (0, right, 0, down), mode=mode)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """(c,) -> (c, 1, 1) in the dtype of `like`."""
    return values.to(like.dtype).view(-1, 1, 1)


def _default_scale(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Checkpoints from elsewhere have no latent scale: they load with shift 0 and scale 1, and no statistics."""
    assert isinstance(module, Autoencoder)
    state_dict.setdefault(prefix + "latent_shift", torch.zeros(module.latent_channels))
    state_dict.setdefault(prefix + "latent_scale", torch.ones(module.latent_channels))
    fresh = StatisticsBuffers(module.latent_channels)
    for name, tensor in fresh.state_dict().items():
        state_dict.setdefault(f"{prefix}latent_statistics.{name}", tensor)
