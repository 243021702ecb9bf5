"""Masks drawn for training: what is painted anew is True. Lengths are shares of the shorter side, as LaMa's are of 256 pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Generator, Tensor

Kind = Literal["boxes", "strokes", "wide", "medium"]
Size = tuple[int, int]  # (h, w)
LEAST, MOST = 0.02, 0.9  # of the image that is painted anew
TRIES = 10  # draws before the box in the middle stands in
VERTICES = 5  # at most, of a stroke
MEDIUM_BOXES = 0.3  # of 1.3: how often boxes are drawn for a mask of LaMa's medium kind


@dataclass(frozen=True)
class Strokes:
    """Chains of thick lines: how many, the longest line and the widest."""

    count: tuple[int, int]
    length: float
    width: float


@dataclass(frozen=True)
class Boxes:
    """Boxes: how many, their sides, and how far from the image's border they stay."""

    count: tuple[int, int]
    side: tuple[float, float]
    margin: float


# Suvorov et al. 2021 (arXiv 2109.07161), the released code's training masks at 256 pixels
WIDE = Strokes((1, 5), 200 / 256, 100 / 256), Boxes((1, 4), (30 / 256, 150 / 256), 10 / 256)
MEDIUM = Strokes((4, 5), 100 / 256, 50 / 256), Boxes((1, 5), (10 / 256, 50 / 256), 0.0)


class Chance:
    """Numbers of one generator, one at a time."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def whole(self, low: int, high: int) -> int:
        """Uniform over low, ..., high."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))


def drawn(size: Size, kinds: Sequence[Kind], generator: Generator | None) -> Tensor:
    """A mask (h, w), bool: one of `kinds`, drawn, that leaves something to see and something to paint.

    Without a generator: the box in the middle, of half the sides.
    """
    if generator is None:
        return middle(size)
    chance = Chance(generator)
    for _ in range(TRIES):
        mask = _KINDS[kinds[chance.whole(0, len(kinds) - 1)]](size, chance)
        if LEAST <= float(mask.float().mean()) <= MOST:
            return mask
    return middle(size)


def middle(size: Size) -> Tensor:
    """(h, w), bool: the box in the middle, of half the sides."""
    mask = torch.zeros(size, dtype=torch.bool)
    (top, left), (height, width) = (side // 4 for side in size), (max(side // 2, 1) for side in size)
    mask[top : top + height, left : left + width] = True
    return mask


def boxes(size: Size, chance: Chance, asked: Boxes = WIDE[1]) -> Tensor:
    """Boxes, (h, w) bool."""
    mask = torch.zeros(size, dtype=torch.bool)
    shorter = min(size)
    margin = int(asked.margin * shorter)
    for _ in range(chance.whole(*asked.count)):
        sides = [min(max(round(chance.between(*asked.side) * shorter), 1), side - 2 * margin) for side in size]
        top, left = (chance.whole(margin, side - margin - own) for side, own in zip(size, sides, strict=True))
        mask[top : top + sides[0], left : left + sides[1]] = True
    return mask


def strokes(size: Size, chance: Chance, asked: Strokes = WIDE[0]) -> Tensor:
    """Chains of thick lines with round ends, each going on about where the last one pointed; (h, w) bool."""
    canvas = Image.new("1", (size[1], size[0]))
    pen, shorter = ImageDraw.Draw(canvas), min(size)
    for _ in range(chance.whole(*asked.count)):
        x, y = chance.between(0, size[1]), chance.between(0, size[0])
        for vertex in range(chance.whole(1, VERTICES)):
            angle = chance.between(0.01, 4.0) + (math.pi if vertex % 2 else 0.0)
            length = chance.between(10 / 256, asked.length) * shorter
            width = max(round(chance.between(5 / 256, asked.width) * shorter), 1)
            end = (x + length * math.sin(angle), y + length * math.cos(angle))
            end = (min(max(end[0], 0.0), size[1] - 1.0), min(max(end[1], 0.0), size[0] - 1.0))
            pen.line([(x, y), end], fill=1, width=width)
            for at in ((x, y), end):
                half = width / 2
                pen.ellipse([at[0] - half, at[1] - half, at[0] + half, at[1] + half], fill=1)
            x, y = end
    return torch.from_numpy(np.array(canvas))


def wide(size: Size, chance: Chance) -> Tensor:
    """LaMa's wide masks: strokes, or boxes, equally often."""
    return strokes(size, chance, WIDE[0]) if chance.between(0, 1) < 0.5 else boxes(size, chance, WIDE[1])


def medium(size: Size, chance: Chance) -> Tensor:
    """LaMa's medium masks: strokes 1 / 1.3 of the time, else boxes."""
    is_boxes = chance.between(0, 1 + MEDIUM_BOXES) < MEDIUM_BOXES
    return boxes(size, chance, MEDIUM[1]) if is_boxes else strokes(size, chance, MEDIUM[0])


_KINDS: dict[Kind, Callable[[Size, Chance], Tensor]] = {
    "boxes": boxes,
    "strokes": strokes,
    "wide": wide,
    "medium": medium,
}
