"""Fields of a scene that follow from what is in it: depth, edges, keypoints, numbers, attributes, a mask, a reference crop.

All but the mask and the reference are closed forms of the shapes; those two draw from generators of their own, so that no other
field's numbers depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmkit.data.sources.scenes.drawing import AREA, REACH, Random, Shape, coverage, extent

NUMBERS = ("shapes", "largest", "covered", "center_x", "center_y")
HORIZON, FOOT, NEAREST = 0.1, 0.5, 1.0  # nearness of the ground at the top and the foot, of the largest shape
LARGEST = 0.35  # no shape has a larger radius
MARGIN = 0.2  # around a masked or referenced shape, in its own sides


def depth(shapes: Sequence[Shape], size: int) -> Image.Image:
    """Grey, white is near: the ground comes nearer towards the foot, shapes stand before it, large ones nearer."""
    near = np.repeat(np.linspace(HORIZON, FOOT, size, dtype=np.float32)[:, None], size, axis=1)
    for shape in sorted(shapes, key=lambda shape: shape.radius):
        own = FOOT + (NEAREST - FOOT) * shape.radius / LARGEST
        cover = coverage(shape.kind, shape.x, shape.y, shape.radius, size)
        near += cover * (np.float32(own) - near)
    return _grey(near)


def edges(shapes: Sequence[Shape], size: int) -> Image.Image:
    """White outlines, a pixel wide, on black: pixels of a shape that have a neighbour outside it."""
    lines = np.zeros((size, size), dtype=np.bool_)
    for shape in shapes:
        inside = np.pad(coverage(shape.kind, shape.x, shape.y, shape.radius, size) >= 0.5, 1)
        around = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        lines |= inside[1:-1, 1:-1] & ~around
    return _grey(lines.astype(np.float32))


def keypoints(shapes: Sequence[Shape], colors: Sequence[str]) -> NDArray[np.float32]:
    """Rows (colour, x, y): the centre of the shape in that colour; a colour that is not in the scene has no row."""
    rows = sorted((colors.index(shape.color), shape.x, shape.y) for shape in shapes)
    return np.array(rows, dtype=np.float32).reshape(-1, 3)


def numbers(shapes: Sequence[Shape]) -> dict[str, float]:
    """`NUMBERS`: how many shapes, the largest radius in sides, the share of the image they cover, their mean centre."""
    centre = np.mean([(shape.x, shape.y) for shape in shapes], axis=0)
    covered = sum(AREA[shape.kind] * shape.radius**2 for shape in shapes)
    largest = max(shape.radius for shape in shapes)
    return dict(zip(NUMBERS, (float(len(shapes)), largest, covered, float(centre[0]), float(centre[1])), strict=True))


def attributes(shapes: Sequence[Shape], ground: str) -> tuple[str, ...]:
    """The words that hold: colours and kinds of the shapes, and the ground; each once, in alphabetical order."""
    return tuple(sorted({word for shape in shapes for word in (shape.color, shape.kind)} | {ground}))


def mask(shapes: Sequence[Shape], size: int, random: Random) -> Image.Image:
    """White, what is to be painted anew: a box around one of the shapes, drawn; black elsewhere."""
    left, top, right, bottom = _around(_one(shapes, random), size)
    pixels = np.zeros((size, size), dtype=np.float32)
    pixels[top:bottom, left:right] = 1
    return _grey(pixels)


def reference(image: Image.Image, shapes: Sequence[Shape], random: Random) -> Image.Image:
    """One of the shapes, drawn, cut out of the image and brought to half its size."""
    shape = _one(shapes, random)
    half = REACH[shape.kind] * shape.radius * (1 + MARGIN)
    side = image.width
    box = [float(np.clip(centre + sign * half, 0, 1)) * side for sign in (-1, 1) for centre in (shape.x, shape.y)]
    return image.resize((side // 2, side // 2), Image.Resampling.BICUBIC, box=(box[0], box[1], box[2], box[3]))


def _one(shapes: Sequence[Shape], random: Random) -> Shape:
    return shapes[int(random.between(0, len(shapes)))]


def _around(shape: Shape, size: int) -> tuple[int, int, int, int]:
    """The pixels (left, top, right, bottom) around a shape, with a margin, inside the image."""
    left, top, right, bottom = extent(shape)
    across, down = MARGIN * (right - left), MARGIN * (bottom - top)
    low = np.floor(np.clip([left - across, top - down], 0, 1) * size).astype(int)
    high = np.ceil(np.clip([right + across, bottom + down], 0, 1) * size).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _grey(values: NDArray[np.float32]) -> Image.Image:
    """Numbers (h, w) in [0, 1] as an image, "L"."""
    return Image.fromarray(np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8))
