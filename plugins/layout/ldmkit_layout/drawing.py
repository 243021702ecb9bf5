"""Layouts for people to see."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

SIDE = 128  # pixels


def painted(boxes: Tensor, names: Sequence[str] | None) -> Image.Image:
    """Rows (n, 5) as frames with their classes' names, on a dark square; a class has one colour."""
    image = Image.new("RGB", (SIDE, SIDE), (24, 24, 28))
    pen = ImageDraw.Draw(image)
    for kind, left, top, right, bottom in boxes.tolist():
        number = int(kind)
        color = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number * 0.618034 % 1.0, 0.6, 1.0))
        corners = [(left * (SIDE - 1), top * (SIDE - 1)), (right * (SIDE - 1), bottom * (SIDE - 1))]
        pen.rectangle(corners, outline=color, width=2)
        name = names[number] if names is not None and number < len(names) else str(number)
        pen.text((corners[0][0] + 4, corners[0][1] + 2), name, fill=color)
    return image
