"""Judges of where things are: the boxes and the keypoints of scenes, read back by colour and shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmkit.data.source import Judge
from ldmkit.data.sources.scenes.judges import Found, Reader

Box = Sequence[float]  # left, top, right, bottom
NEAR = 0.1  # of the picture's side: a point is found where its shape's centre lies no farther away


class BoxJudge(Judge):
    """Mean intersection over union of the boxes asked for and those of the shapes of their kind; a shape too many counts as 0."""

    name = "boxes followed (mean IoU)"

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def score(self, images: Tensor, samples: Sequence[Mapping[str, Any]]) -> Tensor:
        """(n,) in [0, 1]; 1 where no box is asked for and no shape is found."""
        pairs = zip(images, samples, strict=True)
        return torch.tensor([self._score(self.reader.read(image).shapes, sample["boxes"]) for image, sample in pairs])

    def _score(self, shapes: Sequence[Found], boxes: Any) -> float:
        rows: list[list[float]] = np.asarray(boxes).reshape(-1, 5).tolist()
        asked = [(self.reader.kinds[int(row[0])], row[1:]) for row in rows]
        overlaps = [[iou(box, shape.box) if shape.kind == kind else 0.0 for shape in shapes] for kind, box in asked]
        return _matched(overlaps, len(asked), len(shapes))


class KeypointJudge(Judge):
    """The share of the points asked for that a shape of their colour has its centre near; a shape too many counts as 0."""

    name = "keypoints found"

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def score(self, images: Tensor, samples: Sequence[Mapping[str, Any]]) -> Tensor:
        """(n,) in [0, 1]; 1 where no point is asked for and no shape is found."""
        return torch.tensor(
            [self._score(image, sample["keypoints"]) for image, sample in zip(images, samples, strict=True)]
        )

    def _score(self, image: Tensor, points: Any) -> float:
        shapes = self.reader.read(image).shapes
        height, width = image.shape[-2:]
        asked = [(self.reader.colors[int(row[0])], row[1], row[2]) for row in np.asarray(points).reshape(-1, 3)]
        hits = [
            [
                float(
                    shape.color == color and np.hypot((shape.x + 0.5) / width - x, (shape.y + 0.5) / height - y) <= NEAR
                )
                for shape in shapes
            ]
            for color, x, y in asked
        ]
        return _matched(hits, len(asked), len(shapes))


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    both = max(across, 0.0) * max(down, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return float(both / (areas - both)) if areas > both else 0.0


def _matched(scores: Sequence[Sequence[float]], asked: int, found: int) -> float:
    """The best pairing of what was asked for (rows) with what was found (columns), over the larger of their numbers."""
    if not asked or not found:
        return float(asked == found)
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # it has no stubs

    table = np.array(scores)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / max(asked, found))
