"""How scenes are painted: shapes with a soft shadow on a textured ground."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ldmkit.fields import Color

Array = NDArray[np.floating[Any]]
OVERSAMPLING = 4  # shapes are drawn at this many times the size, then averaged: smooth edges, and a true coverage

# Far from each other and from every ground, so that a picture can be read back by colour.
COLORS: dict[str, Color] = {
    "red": (219, 50, 47),
    "yellow": (250, 205, 45),
    "green": (52, 168, 83),
    "blue": (45, 105, 225),
    "purple": (155, 70, 200),
}
RELATIONS = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}  # of the first shape to the second


class Random(Protocol):
    """Where the random numbers of one picture come from."""

    def block(self, *shape: int) -> Array: ...

    def between(self, low: float, high: float) -> float: ...


@dataclass(frozen=True)
class Shape:
    """A shape: kind and colour by name, centre and radius in sides of the picture (y downwards)."""

    kind: str
    color: str
    x: float
    y: float
    radius: float


# Shapes


def _regular(corners: int, radius: float, turn: float) -> Array:
    angles = 2 * np.pi * np.arange(corners) / corners + turn
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32) * np.float32(radius)


def _star() -> Array:
    points = _regular(10, 1.0, -np.pi / 2)
    points[0::2] *= 1.32
    points[1::2] *= 0.62
    return points


# Outlines around their centroid for radius 1, of about the same area; the circle is no polygon.
_OUTLINES: dict[str, Array] = {
    "square": _regular(4, 1.24, np.pi / 4),
    "triangle": _regular(3, 1.36, -np.pi / 2),
    "star": _star(),
}
KINDS: tuple[str, ...] = ("circle", *_OUTLINES)
REACH = {"circle": 1.0, "square": 1.24, "triangle": 1.36, "star": 1.32}  # the farthest point, in radii
AREA = {"circle": math.pi, "square": 2 * 1.24**2, "triangle": 0.75 * math.sqrt(3) * 1.36**2, "star": 0.0}
AREA["star"] = 5 * 1.32 * 0.62 * math.sin(math.pi / 5)  # in squared radii
# Not the shapes' own colours: a map says what is there, not in which colour.
KIND_PALETTE: dict[str, Color] = {
    "circle": (255, 130, 175),
    "square": (70, 205, 205),
    "triangle": (185, 220, 60),
    "star": (255, 165, 60),
}


def extent(shape: Shape) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a shape in sides of the picture."""
    if shape.kind == "circle":
        low, high = np.array([-1.0, -1.0]), np.array([1.0, 1.0])
    else:
        low, high = _OUTLINES[shape.kind].min(0), _OUTLINES[shape.kind].max(0)
    left, top = (shape.x, shape.y) + low * shape.radius
    right, bottom = (shape.x, shape.y) + high * shape.radius
    return float(left), float(top), float(right), float(bottom)


def coverage(kind: str, x: float, y: float, radius: float, size: int) -> Array:
    """How much of each pixel (size, size) a shape covers, in [0, 1]. Centre and radius in sides of the picture."""
    full = size * OVERSAMPLING
    mask = Image.new("L", (full, full))
    pen = ImageDraw.Draw(mask)
    if kind == "circle":
        pen.ellipse([(c - radius) * full for c in (x, y)] + [(c + radius) * full - 1 for c in (x, y)], fill=255)
    else:
        # Pillow's integer coordinates are pixel centres
        pen.polygon([(px, py) for px, py in np.round(((x, y) + _OUTLINES[kind] * radius) * full - 0.5)], fill=255)
    return np.asarray(mask.reduce(OVERSAMPLING), dtype=np.float32) / 255


# Grounds: each gives brightness (size, size) around 0, about +-1 at the strongest


def _clouds(random: Random, rows: int, columns: int, size: int) -> Array:
    """Smooth noise: a small grid of numbers in [-1, 1], enlarged."""
    grid = Image.fromarray(random.block(rows, columns) * 2 - 1)
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def _sand(random: Random, size: int) -> Array:
    """Ripples."""
    across = np.linspace(0, 1, size, dtype=np.float32)
    bend = _clouds(random, 3, 3, size) * 0.9
    slope = random.between(-0.6, 0.6)
    phase: Array = 2 * np.pi * (random.between(4.5, 6.5) * (across[:, None] + slope * across[None, :]) + bend)
    ripples: Array = np.sin(phase)
    return 0.6 * ripples + 0.4 * _clouds(random, 5, 5, size)


def _slate(random: Random, size: int) -> Array:
    """Blotches."""
    return 0.7 * _clouds(random, 5, 5, size) + 0.6 * _clouds(random, 11, 11, size)


def _wood(random: Random, size: int) -> Array:
    """Planks with a grain along them."""
    planks = 4
    shift = random.between(0, size / planks)
    position = (np.arange(size) + shift) * planks / size
    plank = position.astype(np.intp)
    tone = (random.block(planks + 2) * 2 - 1)[plank][:, None] * 0.45
    grain = _clouds(random, size // 3, 3, size) * 0.5
    joint = (position - plank < planks / size).astype(np.float32)[:, None] * -1.3
    planked: Array = (tone + grain + joint).astype(np.float32)
    return planked


def _snow(random: Random, size: int) -> Array:
    """Soft drifts."""
    return 0.9 * _clouds(random, 4, 4, size) + 0.3 * _clouds(random, 9, 9, size)


@dataclass(frozen=True)
class Ground:
    """A kind of ground: its mean colour, and how strongly its texture changes it."""

    color: Color
    strength: tuple[float, float, float]
    texture: Callable[[Random, int], Array]


GROUNDS: dict[str, Ground] = {
    "sand": Ground((226, 200, 160), (11, 12, 14), _sand),
    "slate": Ground((84, 92, 102), (15, 15, 15), _slate),
    "wood": Ground((126, 86, 58), (18, 15, 12), _wood),
    "snow": Ground((236, 240, 246), (10, 7, 4), _snow),
}


# Pictures


def draw(shapes: Sequence[Shape], ground: str, size: int, random: Random) -> Image.Image:
    """The picture (size, size), "RGB"."""
    base = GROUNDS[ground]
    texture = base.texture(random, size)
    texture -= texture.mean()
    grain = (random.block(size, size) * 2 - 1) * 3
    canvas = np.array(base.color, dtype=np.float32) + texture[..., None] * np.array(base.strength, dtype=np.float32)
    canvas += grain[..., None]
    covers = [coverage(s.kind, s.x, s.y, s.radius, size) for s in shapes]
    canvas *= 1 - 0.30 * _shadow(covers, size)[..., None]
    light = np.linspace(1, -1, size, dtype=np.float32)[:, None, None]
    for shape, cover in zip(shapes, covers, strict=True):
        tone = 1 + 0.05 * (2 * random.between(0, 1) - 1)
        lit = light - (1 - 2 * shape.y)  # brighter at its top, darker at its foot
        color = np.array(COLORS[shape.color], dtype=np.float32) * (tone + 0.22 * lit)
        canvas += cover[..., None] * (color - canvas)
    return Image.fromarray(np.clip(canvas + 0.5, 0, 255).astype(np.uint8))


def _shadow(covers: Sequence[Array], size: int) -> Array:
    """What the shapes cast to the lower right, in [0, 1]."""
    total = np.clip(np.sum(covers, axis=0), 0, 1)
    offset = max(1, round(size / 36))
    shadow = Image.fromarray((np.roll(total, (offset, offset), (0, 1)) * 255).astype(np.uint8))
    return np.asarray(shadow.filter(ImageFilter.GaussianBlur(size / 48)), dtype=np.float32) / 255


def label_map(
    shapes: Sequence[Shape], size: int, ground: str, grounds: Sequence[str], kinds: Sequence[str]
) -> NDArray[Any]:
    """Ids (size, size) uint8: the ground's index, and len(grounds) + the kind's index where a shape covers half a pixel."""
    ids = np.full((size, size), grounds.index(ground), dtype=np.uint8)
    for shape in shapes:
        ids[coverage(shape.kind, shape.x, shape.y, shape.radius, size) >= 0.5] = len(grounds) + kinds.index(shape.kind)
    return ids
