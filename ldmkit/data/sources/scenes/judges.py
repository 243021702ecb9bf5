"""Reads scenes back from pixels, by colour and shape, and compares with what was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

from ldmkit.data.source import Judge
from ldmkit.data.sources.scenes.drawing import AREA, COLORS, GROUNDS, RELATIONS, coverage
from ldmkit.errors import DataError

SMALLEST = 0.012  # a patch of colour below this share of the picture is no shape
CROSS = ndimage.generate_binary_structure(2, 1)


@dataclass(frozen=True)
class Found:
    """A shape in a picture: centre in pixels, y downwards."""

    color: str
    kind: str
    x: float
    y: float
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # left, top, right, bottom in sides of the picture


@dataclass(frozen=True)
class Reading:
    """What a picture shows; `ids` (h, w) are as in the field `map`."""

    ground: str
    shapes: tuple[Found, ...]
    ids: NDArray[np.int64]


class Reader:
    """Pictures -> `Reading`s. Names as `ScenesSource` has them.

    The ground is the kind whose colour most pixels are nearest to. Patches of a shape's colour are grown to where the picture is
    half that colour and half ground; a patch's kind is the outline of the same area and centre that overlaps it best.
    """

    def __init__(self, *, kinds: Sequence[str], colors: Sequence[str], grounds: Sequence[str]) -> None:
        self.kinds, self.colors, self.grounds = tuple(kinds), tuple(colors), tuple(grounds)
        shades = [COLORS[color] for color in self.colors]
        self._references = np.array([*shades, *(GROUNDS[ground].color for ground in self.grounds)], dtype=np.float32)

    def read(self, image: Tensor) -> Reading:
        """One picture (3, h, w) in [-1, 1]."""
        if image.ndim != 3 or image.shape[0] != 3:
            raise DataError(f"scenes are read from colour pictures (3, h, w); this one is {tuple(image.shape)}")
        pixels = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
        nearest = _nearest(pixels, self._references)
        votes = np.bincount(nearest.ravel(), minlength=len(self._references))[len(self.colors) :]
        ground = int(votes.argmax())
        here = nearest == len(self.colors) + ground
        base = np.median(pixels[here], 0) if here.any() else self._references[len(self.colors) + ground]
        ids = np.full(pixels.shape[:2], ground, dtype=np.int64)
        shapes = []
        for color, mask in self._patches(pixels, base):
            kind, y, x = self._kind(mask)
            ids[mask] = len(self.grounds) + self.kinds.index(kind)
            shapes.append(Found(color, kind, x, y, _box(mask)))
        return Reading(self.grounds[ground], tuple(shapes), ids)

    def _patches(self, pixels: NDArray[Any], base: NDArray[Any]) -> list[tuple[str, NDArray[np.bool_]]]:
        """(colour, mask) of every shape-sized patch on a ground of colour `base`."""
        nearest = _nearest(pixels, np.concatenate([self._references[: len(self.colors)], base[None]]))
        least = SMALLEST * nearest.size
        patches = []
        for index, color in enumerate(self.colors):
            cores, count = ndimage.label(ndimage.binary_opening(nearest == index, CROSS))
            for core in (cores == number for number in range(1, count + 1)):
                if core.sum() >= least:
                    patches.append((color, _grown(core, pixels, base)))
        return patches

    def _kind(self, mask: NDArray[np.bool_]) -> tuple[str, float, float]:
        """The kind of shape, and its centre (y, x) in pixels."""
        height, width = mask.shape
        side = max(height, width)
        y, x = (float(c) for c in ndimage.center_of_mass(mask))
        scores = []
        for kind in self.kinds:
            radius = np.sqrt(mask.sum() / AREA[kind]) / side
            outline = coverage(kind, (x + 0.5) / side, (y + 0.5) / side, radius, side)[:height, :width] >= 0.5
            scores.append((mask & outline).sum() / (mask | outline).sum())
        return self.kinds[int(np.argmax(scores))], y, x


def _nearest(pixels: NDArray[Any], references: NDArray[Any]) -> NDArray[np.intp]:
    """The reference (k, 3) nearest to each pixel (h, w, 3)."""
    distances: NDArray[Any] = ((pixels[:, :, None] - references) ** 2).sum(-1)
    nearest: NDArray[np.intp] = distances.argmin(-1)
    return nearest


def _grown(core: NDArray[np.bool_], pixels: NDArray[Any], base: NDArray[Any]) -> NDArray[np.bool_]:
    """The core and the pixels around it that are at least half of its colour; the rest of them is ground."""
    axis = np.median(pixels[core], 0) - base
    share = (pixels - base) @ axis / max(float(axis @ axis), 1.0)
    grown: NDArray[np.bool_] = ndimage.binary_dilation(core, CROSS, iterations=3) & (share >= 0.5) | core
    patches, _ = ndimage.label(grown)
    grown = patches == np.bincount(patches[core]).argmax()
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(grown)
    return filled


def _box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of what is True, in sides of the picture."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    return (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)


class CaptionJudge(Judge):
    """The share of a caption's attributes found: each shape in its colour, the ground, and the relation if it states one."""

    name = "caption attributes found"

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def score(self, images: Tensor, samples: Sequence[Mapping[str, Any]]) -> Tensor:
        """(n,) shares of the attributes that `sample["caption"]` states."""
        pairs = zip(images, samples, strict=True)
        return torch.tensor([self._share(self.reader.read(image), sample["caption"]) for image, sample in pairs])

    def _share(self, reading: Reading, caption: str) -> float:
        asked = parse(caption)
        left = list(reading.shapes)
        found: list[Found | None] = []
        for color, kind in asked.shapes:
            match = next((shape for shape in left if (shape.color, shape.kind) == (color, kind)), None)
            found.append(match)
            if match is not None:
                left.remove(match)
        marks = [match is not None for match in found] + [reading.ground == asked.ground]
        if asked.relation is not None:
            marks.append(_holds(asked.relation, *found[:2]))
        return sum(marks) / len(marks)


@dataclass(frozen=True)
class Asked:
    """What a caption states: (colour, kind) of each shape, the ground, the relation of the first shape to the second."""

    shapes: tuple[tuple[str, str], ...]
    ground: str
    relation: str | None


def parse(caption: str) -> Asked:
    """The inverse of `Scene.caption`."""
    things, _, ground = caption.rpartition(" on ")
    shapes = tuple(re.findall(r"\ba (\w+) (\w+)", things))
    if not shapes:
        raise DataError(f"{caption!r} is no caption of a scene, such as 'a red circle left of a blue square on sand'")
    return Asked(shapes, ground, next((relation for relation in RELATIONS if relation in things), None))


def _holds(relation: str, first: Found | None, second: Found | None) -> bool:
    """Whether the first shape lies to the second as stated, more than it lies any other way."""
    if first is None or second is None:
        return False
    offset = np.array([first.x - second.x, first.y - second.y])
    along = float(offset @ np.array(RELATIONS[relation]))
    return along > 0 and along >= np.abs(offset).max()


class MapJudge(Judge):
    """Mean intersection over union of the map read back and the sample's `map`, over the classes in either of the two."""

    name = "label map followed (mIoU)"

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.classes = len(reader.grounds) + len(reader.kinds)

    def score(self, images: Tensor, samples: Sequence[Mapping[str, Any]]) -> Tensor:
        """(n,) mIoU; ids of the map outside the classes are left out."""
        return torch.tensor(
            [
                self._mean_iou(self.reader.read(image).ids, np.asarray(sample["map"]))
                for image, sample in zip(images, samples, strict=True)
            ]
        )

    def _mean_iou(self, ids: NDArray[np.int64], truth: NDArray[Any]) -> float:
        if ids.shape != truth.shape:
            raise DataError(f"the picture is {ids.shape[0]} x {ids.shape[1]} and its map {truth.shape}")
        counted = truth < self.classes
        table = np.zeros((self.classes, self.classes), dtype=np.int64)
        np.add.at(table, (truth[counted].astype(np.int64), ids[counted]), 1)
        union = table.sum(0) + table.sum(1) - table.diagonal()
        return float((table.diagonal()[union > 0] / union[union > 0]).mean()) if counted.any() else 0.0


class GroundJudge(Judge):
    """Whether the ground is the one that the sample's `label` says."""

    name = "ground recognised"

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.chance = 1 / len(reader.grounds)

    def score(self, images: Tensor, samples: Sequence[Mapping[str, Any]]) -> Tensor:
        """(n,) 1 where it is, else 0."""
        wanted = [self.reader.grounds[int(sample["label"])] for sample in samples]
        grounds = [self.reader.read(image).ground for image in images]
        return torch.tensor([float(a == b) for a, b in zip(grounds, wanted, strict=True)])
