"""Blind super-resolution's degradation: blur, resizing, noise, JPEG and a camera, in a random order.

Zhang et al. 2021, "Designing a practical degradation model for deep blind image super-resolution" (arXiv 2103.14006), with the
constants the released latent diffusion models were trained with. Pictures here are float (c, h, w) in [0, 1]; every draw
comes from the generator that is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from ldmkit_low_res.camera import camera

Size = tuple[int, int]


@dataclass(frozen=True)
class Settings:
    """The constants of one variant; ranges include both ends."""

    blurs: int  # passes of blur
    blur_scale: float  # on the width of blur kernels
    anisotropic_sides: tuple[int, ...]  # sides of the kernels, one is drawn
    isotropic_sides: tuple[int, ...]
    soft_resize: float  # probability that the first resizing is one to a random size, and not blur and decimation
    noise: tuple[int, int]  # of 255
    jpeg: tuple[int, int]  # quality
    jpeg_probability: float = 0.9  # of the JPEG among the shuffled stages; another one always comes last
    camera_probability: float = 0.25
    half_probability: float = 0.25  # at x4: half the work is done by a resizing at the start


BSR = Settings(
    blurs=2,
    blur_scale=1.0,
    anisotropic_sides=tuple(range(7, 26, 2)),
    isotropic_sides=tuple(range(7, 26, 2)),
    soft_resize=0.75,
    noise=(2, 25),
    jpeg=(30, 95),
)
# What the released bsr_sr model was trained with: one blur, a quarter as wide, hardly any noise.
BSR_LIGHT = Settings(
    blurs=1,
    blur_scale=0.25,
    anisotropic_sides=tuple(range(5, 15)),
    isotropic_sides=tuple(range(5, 8)),
    soft_resize=0.8,
    noise=(1, 2),
    jpeg=(80, 95),
)


def degrade(picture: Tensor, size: Size, settings: Settings, generator: Generator) -> Tensor:
    """(c, h, w) in [0, 1] -> (c, *size) in [0, 1]: the stages in a random order, the resizing to `size` after the other one."""
    dice = Dice(generator)
    scale = picture.shape[-2] / size[0]
    if scale == 4 and dice.chance(settings.half_probability):
        picture = resize(picture, (picture.shape[-2] // 2, picture.shape[-1] // 2), dice)
        scale = 2.0
    Stage = Callable[[Tensor], Tensor]  # noqa: N806
    first: Stage = partial(_first_resize, scale=scale, settings=settings, dice=dice)
    last: Stage = partial(_last_resize, size=size, dice=dice)
    stages: list[Stage] = [partial(_blur, scale=scale, settings=settings, dice=dice) for _ in range(settings.blurs)]
    stages += [
        first,
        last,
        partial(_noise, settings=settings, dice=dice),
        partial(_jpeg, settings=settings, dice=dice, probability=settings.jpeg_probability),
        partial(_camera, settings=settings, dice=dice),
    ]
    order = [stages[index] for index in dice.permutation(len(stages))]
    early, late = sorted((order.index(first), order.index(last)))
    order[early], order[late] = first, last
    for stage in order:
        picture = stage(picture).clamp(0.0, 1.0)
    return _jpeg(picture, settings=settings, dice=dice, probability=1.0)


class Dice:
    """Draws from one generator."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """In [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def permutation(self, count: int) -> list[int]:
        """0 to count - 1 in a random order."""
        order: list[int] = torch.randperm(count, generator=self.generator).tolist()
        return order

    def normal(self, *shape: int) -> Tensor:
        """Unit normal, (*shape)."""
        return torch.randn(shape, generator=self.generator)


def resize(picture: Tensor, size: Size, dice: Dice) -> Tensor:
    """(c, h, w) to `size` by bilinear, bicubic or area, drawn; the first two not antialiased, so that they degrade."""
    mode = ("bilinear", "bicubic", "area")[dice.integer(0, 2)]
    return F.interpolate(picture[None], (max(size[0], 1), max(size[1], 1)), mode=mode)[0]


def gaussian_kernel(side: int, covariance: Tensor, offset: float = 0.0) -> Tensor:
    """(side, side), sums to 1: a Gaussian of a 2x2 covariance in pixels, centred `offset` pixels down and right of the middle."""
    along = torch.arange(side, dtype=torch.float64) - (side - 1) / 2 - offset
    points = torch.stack(torch.meshgrid(along, along, indexing="ij"), -1)
    exponent = -0.5 * torch.einsum("yxi,ij,yxj->yx", points, torch.linalg.inv(covariance.double()), points)
    kernel = (exponent - exponent.max()).exp()
    return (kernel / kernel.sum()).float()


def filtered(picture: Tensor, kernel: Tensor) -> Tensor:
    """Each channel of (c, h, w) correlated with a kernel (k, k); mirrored at the edges, or repeated where too small."""
    side = kernel.shape[0]
    before, after = (side - 1) // 2, side // 2
    mode = "reflect" if after < min(picture.shape[-2:]) else "replicate"
    padded = F.pad(picture[:, None], (before, after, before, after), mode=mode)
    return F.conv2d(padded, kernel[None, None])[:, 0]


def _blur(picture: Tensor, *, scale: float, settings: Settings, dice: Dice) -> Tensor:
    if dice.chance(0.5):
        widest = settings.blur_scale * (4.0 + scale)
        variances = torch.tensor([dice.uniform(0.01, widest), dice.uniform(0.01, widest)])
        angle = dice.uniform(0.0, math.pi)
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        side = settings.anisotropic_sides[dice.integer(0, len(settings.anisotropic_sides) - 1)]
        return filtered(picture, gaussian_kernel(side, turn @ variances.diag() @ turn.T))
    width = dice.uniform(0.01, settings.blur_scale * (2.0 + 0.2 * scale))
    side = settings.isotropic_sides[dice.integer(0, len(settings.isotropic_sides) - 1)]
    return filtered(picture, gaussian_kernel(side, width**2 * torch.eye(2)))


def _first_resize(picture: Tensor, *, scale: float, settings: Settings, dice: Dice) -> Tensor:
    """To a random size between the full one and half the small one, or blur and decimation."""
    if dice.chance(settings.soft_resize):
        factor = dice.uniform(1.0, 2.0 * scale)
        return resize(picture, (int(picture.shape[-2] / factor), int(picture.shape[-1] / factor)), dice)
    step = max(round(scale), 1)
    width = dice.uniform(0.1, max(0.6 * scale, 0.1))
    # Decimation keeps the upper left of each step x step block; the kernel is centred on the block, so nothing shifts.
    kernel = gaussian_kernel(25, width**2 * torch.eye(2), offset=(step - 1) / 2)
    return filtered(picture, kernel)[:, ::step, ::step]


def _last_resize(picture: Tensor, *, size: Size, dice: Dice) -> Tensor:
    return resize(picture, size, dice)


def _noise(picture: Tensor, *, settings: Settings, dice: Dice) -> Tensor:
    """Gaussian: of each channel, the same in all, or with a random covariance between them."""
    level = dice.integer(*settings.noise) / 255.0
    channels, height, width = picture.shape
    kind = dice.uniform()
    if kind > 0.6:
        return picture + level * dice.normal(channels, height, width)
    if kind < 0.4 or channels == 1:
        return picture + level * dice.normal(1, height, width)
    turn = torch.linalg.qr(dice.normal(channels, channels))[0]
    deviations = torch.tensor([dice.uniform() ** 0.5 for _ in range(channels)]) * settings.noise[1] / 255.0
    return picture + torch.einsum("ij,jhw->ihw", turn * deviations, dice.normal(channels, height, width))


def _jpeg(picture: Tensor, *, settings: Settings, dice: Dice, probability: float) -> Tensor:
    if not dice.chance(probability):
        return picture
    quality = dice.integer(*settings.jpeg)
    pixels = (picture * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
    decoded = np.array(Image.open(file))
    return torch.from_numpy(decoded.reshape(*decoded.shape[:2], -1)).permute(2, 0, 1).float() / 255.0


def _camera(picture: Tensor, *, settings: Settings, dice: Dice) -> Tensor:
    if picture.shape[0] != 3 or not dice.chance(settings.camera_probability):
        return picture
    gains = (dice.uniform(1.9, 2.4), 1.0, dice.uniform(1.5, 1.9))
    shot = math.exp(dice.uniform(math.log(1e-4), math.log(1.2e-3)))
    return camera(picture, gains=gains, shot=shot, noise=dice.normal(*picture.shape[-2:]))
