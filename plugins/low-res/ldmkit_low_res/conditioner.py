"""Super-resolution: the low-resolution picture itself, joined to the latent (paper, section 4.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, ForeignStage, LatentSpec, Ports, Tensors
from ldmkit.conditioning.widgets import ImageDrop
from ldmkit.errors import DataError, RecipeError
from ldmkit_low_res.degradation import DEGRADATIONS, RESAMPLING, bicubic
from ldmkit_low_res.pictures import UNKNOWN, read_picture, to_pil

if TYPE_CHECKING:
    from PIL.Image import Image

LEVEL_WIDTH = 64  # of the embedded noise level
MOST_DECIBELS = 100.0  # fidelity of a picture that agrees exactly


class LowResConditioner(Conditioner):
    """A small picture of what is to be made, by concat.

    Args:
        scale: how many times smaller it is than the image: 2, 3, 4, 8 ...
        size: the small picture's (h, w), or its one side, whatever the image's size; instead of `scale`.
        degradation: how the small picture is made in training. `bicubic`: antialiased, as Pillow. `area`: the mean. `bsr`: blur,
            resizing, noise and JPEG in random order (Zhang et al. 2021), for pictures from the wild; `bsr-light`: its mild form.
        noise: noise augmentation (Ho et al. 2021, arXiv 2106.15282): in training the small picture gets noise of a random level
            from 0 to this (at most 1), and the level is told to the UNet by a vector; when sampling the level is 0.
        channels: channels of the pictures.
        latent: also the latent of the small picture enlarged to the image's size (bicubic): what the autoencoder makes of it, in
            the numbers that the UNet is to predict.

    Where the latent grid has the small picture's size (`scale` equal to the autoencoder's factor) the UNet gets the picture
    itself. Elsewhere it is resized to the grid. The null is a grey picture (zeros). Raises RecipeError for options out
    of range, and for a `scale` that does not divide the image's size.
    """

    reads = ("image",)

    def __init__(
        self,
        *,
        scale: int = 4,
        size: int | tuple[int, int] | None = None,
        degradation: Literal["bicubic", "area", "bsr", "bsr-light"] = "bicubic",
        noise: float = 0.0,
        channels: int = 3,
        latent: bool = False,
        space: LatentSpec | None = None,
    ) -> None:
        super().__init__()
        if scale < 1:
            raise RecipeError(f"scale is {scale}; a whole number of times from 1 up is needed")
        if not 0.0 <= noise <= 1.0:
            raise RecipeError(f"noise is {noise}; it lies from 0 to 1")
        if channels not in (1, 3):
            raise RecipeError(f"channels is {channels}; pictures have 1 or 3")
        self.scale = scale
        self.size = (size, size) if isinstance(size, int) else size
        self.degradation, self.noise, self.channels = degradation, noise, channels
        if self.size is not None and min(self.size) < 1:
            raise RecipeError(f"size is {self.size}; at least 1 x 1 is needed")
        if space is not None:
            self._small_size(space.size, RecipeError)
        if latent and space is None:
            raise RecipeError(
                "latent: true needs to know the latent space", hint="give space=LatentSpec(...) beside it"
            )
        self.latent_channels = space.channels if latent and space is not None else 0
        self.emits = Ports(concat=channels + self.latent_channels, vector=LEVEL_WIDTH if noise else 0)

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """{"image": (c, h, w) in [-1, 1], small}, and with noise augmentation {"level": (), "noise": (c, h, w)} beside it.

        Without a generator there is no noise, and `bsr` draws as with a fixed seed. Raises DataError for an image of
        another number of channels, or of a size that `scale` does not divide.
        """
        picture: Tensor = sample["image"]
        if picture.ndim != 3 or picture.shape[0] != self.channels:
            raise DataError(
                f"the image is {tuple(picture.shape)}; ({self.channels}, h, w) is needed", hint="see `channels`"
            )
        size = self._small_size((picture.shape[-2], picture.shape[-1]), DataError)
        small = DEGRADATIONS[self.degradation](picture.float(), size, generator)
        return self._with_noise(small, generator)

    def from_user(self, value: Any, size: tuple[int, int]) -> Tensors:
        """A small picture of any size: a path, a PIL image, a uint8 array, or a tensor (c, h, w); it is used as it is."""
        return self._with_noise(read_picture(value, self.channels, self.known_fields.get("image", UNKNOWN)), None)

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """The small pictures, on the latent grid, and with `latent` the latents of their enlargements after them."""
        pictures = prepared["image"].to(torch.float32)
        if not self.noise:
            return Conditioning(concat=self._joined(pictures, canvas))
        level = prepared["level"].to(torch.float32)
        mixed = level[:, None, None, None]
        # Variance preserving, so that the input's scale does not give the level away.
        pictures = (1.0 - mixed**2).clamp(min=0.0).sqrt() * pictures + mixed * prepared["noise"].to(torch.float32)
        return Conditioning(concat=self._joined(pictures, canvas), vector=_embedded(level).to(canvas.dtype))

    def _joined(self, pictures: Tensor, canvas: Canvas) -> Tensor:
        pictures = canvas.extend(pictures)
        small = _resized(pictures, canvas.grid).to(canvas.dtype)
        if not self.latent_channels:
            return small
        enlarged = _resized(pictures, canvas.size).clamp(-1.0, 1.0)
        return torch.cat([small, canvas.to_latent(enlarged.to(canvas.dtype)).to(canvas.dtype)], dim=1)

    def null(self, canvas: Canvas) -> Conditioning:
        """A grey picture without noise, and zeros for its latent."""
        grey = canvas.zeros(1, self.emits.concat, *canvas.grid)
        return Conditioning(
            concat=grey, vector=_embedded(canvas.zeros(1).float()).to(canvas.dtype) if self.noise else None
        )

    def output_size(self, prepared: Tensors) -> tuple[int, int] | None:
        """`scale` times the small picture's; with a fixed `size` it says nothing about the image's."""
        height, width = prepared["image"].shape[-2:]
        return None if self.size is not None else (height * self.scale, width * self.scale)

    def preview(self, prepared: Tensors) -> Image:
        """The small picture."""
        return to_pil(prepared["image"])

    def fidelity(self, images: Tensor, prepared: Tensors) -> Tensor:
        """(b,) PSNR in dB, at most 100: the images brought back down by the same resampling against the small pictures.

        `bsr` is random and cannot be repeated: bicubic stands for it.
        """
        target = prepared["image"].to(images.device, torch.float32)
        size = (target.shape[-2], target.shape[-1])
        again = RESAMPLING.get(self.degradation, bicubic)(images.float(), size)
        error = ((again - target) / 2.0).square().flatten(1).mean(1)  # [-1, 1] has a range of 2
        return -10.0 * error.clamp(min=10.0 ** (-MOST_DECIBELS / 10.0)).log10()

    def widget(self) -> ImageDrop:
        """A place to drop the small image."""
        larger = f"each side becomes {self.scale} times larger" if self.size is None else ""
        return ImageDrop(size=self.size, help=larger)

    @classmethod
    def from_foreign(cls, stage: ForeignStage) -> Self | None:
        """CompVis' super-resolution: no network, the field `LR_image` by concat. Released models are x4."""
        if stage.target.rpartition(".")[2] != "Identity" or stage.key != "LR_image" or stage.port != "concat":
            return None
        return cls(scale=int(stage.params.get("scale", 4)), channels=stage.channels or 3)

    def _small_size(self, size: tuple[int, int], error: type[RecipeError] | type[DataError]) -> tuple[int, int]:
        height, width = size
        if self.size is None:
            if height % self.scale or width % self.scale:
                down = tuple(side // self.scale * self.scale or self.scale for side in size)
                raise error(
                    f"an image of {height} x {width} cannot be made {self.scale} times smaller",
                    hint=f"choose a size that {self.scale} divides, such as {down[0]} x {down[1]}, or give `size`",
                )
            return height // self.scale, width // self.scale
        if self.size[0] > height or self.size[1] > width:
            raise error(
                f"the low-resolution picture, {self.size[0]} x {self.size[1]}, is larger than the image, {height} x {width}"
            )
        return self.size

    def _with_noise(self, small: Tensor, generator: Generator | None) -> Tensors:
        if not self.noise:
            return {"image": small}
        if generator is None:
            return {"image": small, "level": torch.zeros(()), "noise": torch.zeros_like(small)}
        level = self.noise * torch.rand((), generator=generator)
        return {"image": small, "level": level, "noise": torch.randn(small.shape, generator=generator)}


def _resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    if pictures.shape[-2:] == size:
        return pictures
    return F.interpolate(pictures, size, mode="bicubic", antialias=True)


def _embedded(level: Tensor) -> Tensor:
    """Levels (b,) in [0, 1] -> (b, 64) sines and cosines, as timesteps of 1000 are embedded."""
    half = LEVEL_WIDTH // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, device=level.device) / half)
    angles = 1000.0 * level[:, None] * rates[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)
