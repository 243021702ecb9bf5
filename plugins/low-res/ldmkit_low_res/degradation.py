"""How a picture becomes small: plain resampling here, the blind degradations in `bsr`.

Everything is float (c, h, w) or (b, c, h, w) in [-1, 1] and ends on the 256 levels of an 8-bit picture, as real files do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Generator, Tensor

from ldmkit_low_res.bsr import BSR, BSR_LIGHT, Settings, degrade

Size = tuple[int, int]
Degradation = Callable[
    [Tensor, Size, Generator | None], Tensor
]  # picture (c, h, w), the small size (h, w) -> the small picture


def bicubic(pictures: Tensor, size: Size) -> Tensor:
    """(..., h, w) by antialiased bicubic (Keys 1981, a = -0.5): within one 8-bit level of Pillow's ``BICUBIC``."""
    batch = pictures if pictures.ndim == 4 else pictures[None]
    return to_8_bit(F.interpolate(batch, size, mode="bicubic", antialias=True)).reshape(*pictures.shape[:-2], *size)


def area(pictures: Tensor, size: Size) -> Tensor:
    """(..., h, w) by the mean over the area of each new pixel."""
    batch = pictures if pictures.ndim == 4 else pictures[None]
    return to_8_bit(F.interpolate(batch, size, mode="area")).reshape(*pictures.shape[:-2], *size)


def to_8_bit(pictures: Tensor) -> Tensor:
    """Values in [-1, 1], of any shape, rounded to the 256 levels of an 8-bit picture; what lies outside is clipped."""
    return ((pictures.clamp(-1.0, 1.0) + 1.0) * 127.5).round() / 127.5 - 1.0


def _blind(settings: Settings) -> Degradation:
    def run(picture: Tensor, size: Size, generator: Generator | None) -> Tensor:
        generator = generator or Generator().manual_seed(0)
        return to_8_bit(2.0 * degrade((picture + 1.0) / 2.0, size, settings, generator) - 1.0)

    return run


DEGRADATIONS: dict[str, Degradation] = {
    "bicubic": lambda picture, size, _: bicubic(picture, size),
    "area": lambda picture, size, _: area(picture, size),
    "bsr": _blind(BSR),
    "bsr-light": _blind(BSR_LIGHT),
}
RESAMPLING = {"bicubic": bicubic, "area": area}  # those without chance: they bring a generated picture back down
