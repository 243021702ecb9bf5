"""`scenes`: pictures drawn here: coloured shapes on a ground, each with a caption, a label map, boxes and a class."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ldmkit.data.sample import Info, Sample
from ldmkit.data.source import Judge, Part, Source
from ldmkit.data.sources.scenes import derived
from ldmkit.data.sources.scenes.drawing import (
    COLORS,
    GROUNDS,
    KIND_PALETTE,
    KINDS,
    REACH,
    RELATIONS,
    Shape,
    draw,
    extent,
    label_map,
)
from ldmkit.errors import DataError
from ldmkit.fields import Field
from ldmkit.random import generator

HELD_OUT_FROM = 2**40  # the first index of the held-out scenes
RADII = {1: (0.27, 0.35), 2: (0.175, 0.22), 3: (0.155, 0.185), 4: (0.13, 0.15)}  # by the number of shapes; in sides


@dataclass(frozen=True)
class Scene:
    """What is in a picture. With a relation there are two shapes, and it is the first one's to the second."""

    ground: str
    shapes: tuple[Shape, ...]
    relation: str | None = None

    @property
    def caption(self) -> str:
        """In words: "a red circle left of a blue square on sand"."""
        things = [f"a {shape.color} {shape.kind}" for shape in self.shapes]
        if self.relation is not None:
            what = f"{things[0]} {self.relation} {things[1]}"
        else:
            what = " and ".join(filter(None, (", ".join(things[:-1]), things[-1])))
        return f"{what} on {self.ground}"


class ScenesSource(Source):
    """Scenes, deterministic in (seed, index); one sample serves every modality.

    Args:
        count: scenes to train on; None: endless.
        held_out: scenes held out, from another range of indices.
        shapes: the least and the most shapes in a scene, 1 to 4. The colours in one scene are all different.
        kinds, colors, grounds: which there are; their order gives the class ids.
        relations: captions of two shapes say how they lie to each other; other captions name them from left to right.
        size: of the drawing in pixels; it is a square, of the longer of two sides.
        seed: another seed, other scenes.

    Fields: `image`; `caption`; `map` (ids: the grounds, then the kinds of shape); `boxes` (class: the kind of shape); `label`
    (the ground); `depth` (white is near), `edges` and `mask` (white around one shape), grey images aligned with `image`;
    `keypoints` (the centre of the shape in each colour); `attributes` (colours, kinds and ground, as words); `numbers`, and each
    of them under its name: `shapes` (how many), `largest` (radius in sides), `covered` (share of the image), `center_x`,
    `center_y`; `reference` (one shape, cut out).
    """

    KINDS: ClassVar[tuple[str, ...]] = tuple(KINDS)

    def __init__(
        self,
        *,
        count: int | None = None,
        held_out: int = 1024,
        shapes: tuple[int, int] = (2, 3),
        kinds: tuple[str, ...] = ("circle", "square", "triangle"),
        colors: tuple[str, ...] = tuple(COLORS),
        grounds: tuple[str, ...] = tuple(GROUNDS),
        relations: bool = True,
        size: int | tuple[int, int] = 64,
        seed: int = 0,
    ) -> None:
        for name, given, known in (("kinds", kinds, KINDS), ("colors", colors, COLORS), ("grounds", grounds, GROUNDS)):
            if not given or len(set(given)) < len(given) or not set(given) <= set(known):
                raise DataError(f"{name} is {list(given)}; give each at most once, out of {', '.join(known)}")
        if not 1 <= shapes[0] <= shapes[1] <= min(max(RADII), len(colors)):
            limit = min(max(RADII), len(colors))
            raise DataError(f"shapes is {list(shapes)}; it is [least, most] between 1 and {limit}")
        size = size if isinstance(size, int) else max(size)
        if (count is not None and not 0 < count <= HELD_OUT_FROM) or held_out < 1 or size < 16:
            raise DataError(f"count {count}, held_out {held_out}, size {size}: at least 1, 1 and 16 are needed")
        self.count, self.held_out, self.first = count, held_out, 0
        self.shapes, self.kinds, self.colors, self.grounds = shapes, kinds, colors, grounds
        self.relations, self.size, self.seed = relations, size, seed

    def split(self, part: Part) -> ScenesSource:
        """Disjoint ranges of indices: from 0 on, or from 2^40 on."""
        twin = copy.copy(self)
        twin.first = HELD_OUT_FROM if part == "validation" else 0
        return twin

    def info(self) -> Info:
        """The fields, with the names and colours of their classes."""
        names = (*self.grounds, *self.kinds)
        words = (*self.colors, *self.kinds, *self.grounds)
        palette = tuple([GROUNDS[g].color for g in self.grounds] + [KIND_PALETTE[k] for k in self.kinds])
        fields = {
            "image": Field("image"),
            "caption": Field("text"),
            "map": Field("map", len(names), names, palette),
            "boxes": Field("boxes", len(self.kinds), self.kinds),
            "label": Field("label", len(self.grounds), self.grounds),
            "depth": Field("image", channels=1, aligned=True),
            "edges": Field("image", channels=1, aligned=True),
            "mask": Field("image", channels=1, aligned=True),
            "keypoints": Field("keypoints", len(self.colors), self.colors),
            "attributes": Field("words", len(words), words),
            "numbers": Field("numbers", names=derived.NUMBERS),
            "reference": Field("image", channels=3),
        }
        fields |= {name: Field("number") for name in derived.NUMBERS}
        count = self.held_out if self.first else self.count
        return Info(count, fields, licence="drawn by ldmkit; no rights reserved (CC0 1.0)")

    def __getitem__(self, index: int) -> Sample:
        known = self.info().count
        if index < 0 or (known is not None and index >= known):
            raise IndexError(f"scene {index} is outside [0, {known})")
        drawn = _Drawn(self, self.first + index)
        return Sample(drawn.loaders(), name=f"scenes/{self.seed}/{self.first + index}")

    def judge(self, field: str) -> Judge | None:
        """Readers of caption, map, label, boxes and keypoints, by colour and shape."""
        from ldmkit.data.sources.scenes.judges import CaptionJudge, GroundJudge, MapJudge, Reader
        from ldmkit.data.sources.scenes.place_judges import BoxJudge, KeypointJudge

        judges: dict[str, Any] = {"caption": CaptionJudge, "map": MapJudge, "label": GroundJudge}
        judges |= {"boxes": BoxJudge, "keypoints": KeypointJudge}
        if field not in judges:
            return None
        judge: Judge = judges[field](Reader(kinds=self.kinds, colors=self.colors, grounds=self.grounds))
        return judge


class _Drawn:
    """One scene: what is in it is cheap, the picture less so."""

    def __init__(self, source: ScenesSource, index: int) -> None:
        self.source, self.index = source, index

    @cached_property
    def scene(self) -> Scene:
        return compose(self.source, Dice(self.source.seed, "scene", self.index))

    @cached_property
    def image(self) -> Image.Image:
        paint = Dice(self.source.seed, "scene-paint", self.index)
        return draw(self.scene.shapes, self.scene.ground, self.source.size, paint)

    def loaders(self) -> dict[str, Callable[[], Any]]:
        """Field -> what makes it, when it is first read."""
        source, size = self.source, self.source.size

        def shapes() -> tuple[Shape, ...]:
            return self.scene.shapes

        return {
            "image": lambda: self.image,
            "caption": lambda: self.scene.caption,
            "map": lambda: label_map(shapes(), size, self.scene.ground, source.grounds, source.kinds),
            "boxes": lambda: _boxes(shapes(), source.kinds),
            "label": lambda: source.grounds.index(self.scene.ground),
            "depth": lambda: derived.depth(shapes(), size),
            "edges": lambda: derived.edges(shapes(), size),
            "mask": lambda: derived.mask(shapes(), size, Dice(source.seed, "scene-mask", self.index)),
            "keypoints": lambda: derived.keypoints(shapes(), source.colors),
            "attributes": lambda: derived.attributes(shapes(), self.scene.ground),
            "numbers": lambda: np.array(list(derived.numbers(shapes()).values()), dtype=np.float32),
            "reference": lambda: derived.reference(
                self.image, shapes(), Dice(source.seed, "scene-reference", self.index)
            ),
            **{name: partial(lambda name: derived.numbers(shapes())[name], name) for name in derived.NUMBERS},
        }


class Dice:
    """Random numbers for one scene, keyed by (seed, purpose, index)."""

    def __init__(self, seed: int, purpose: str, index: int) -> None:
        self._generator = generator(seed, purpose, index)

    def block(self, *shape: int) -> NDArray[np.floating[Any]]:
        """Uniform in [0, 1)."""
        numbers: NDArray[np.floating[Any]] = torch.rand(shape, generator=self._generator).numpy()
        return numbers

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * float(self.block(1)[0])

    def pick(self, options: Sequence[str], count: int = 1) -> list[str]:
        """`count` different options."""
        return [options[i] for i in np.argsort(self.block(len(options)))[:count]]


def compose(source: ScenesSource, dice: Dice) -> Scene:
    """What is where."""
    low, high = source.shapes
    count = low + int(dice.between(0, high - low + 1))
    (ground,) = dice.pick(source.grounds)
    colors = dice.pick(source.colors, count)
    kinds = [dice.pick(source.kinds)[0] for _ in range(count)]
    relation = dice.pick(tuple(RELATIONS))[0] if source.relations and count == 2 else None
    places = _places(kinds, relation, dice)
    shapes = [Shape(k, c, *place) for k, c, place in zip(kinds, colors, places, strict=True)]
    if relation is None:
        shapes.sort(key=lambda shape: shape.x)
    return Scene(ground, tuple(shapes), relation)


def _places(kinds: Sequence[str], relation: str | None, dice: Dice) -> list[tuple[float, float, float]]:
    """(x, y, radius) of each shape in sides of the picture: inside it, apart, and clearly in the relation."""
    count, shrink = len(kinds), 1.0
    reach = np.array([REACH[kind] for kind in kinds])
    while True:
        low, high = RADII[count]
        radii = (low + (high - low) * dice.block(count)) * shrink
        room = radii * reach + 0.015
        centres = room[:, None] + (1 - 2 * room[:, None]) * dice.block(64, count, 2)
        apart = centres[:, :, None] - centres[:, None]
        gaps = np.hypot(apart[..., 0], apart[..., 1]) - (radii * reach)[:, None] - (radii * reach)
        fits = (gaps[:, *np.triu_indices(count, 1)] > 0.02).all(1)
        if relation is not None:
            fits &= _related(apart[:, 0, 1], relation)
        if fits.any():
            chosen = centres[int(np.argmax(fits))]
            return [(float(x), float(y), float(r)) for (x, y), r in zip(chosen, radii, strict=True)]
        shrink *= 0.99  # so that this ends


def _related(apart: NDArray[Any], relation: str) -> NDArray[np.bool_]:
    """Whether offsets (n, 2) of the first shape from the second lie within 30 degrees of the relation's direction."""
    along = apart @ np.array(RELATIONS[relation], dtype=apart.dtype)
    related: NDArray[np.bool_] = along > math.cos(math.radians(30)) * np.hypot(apart[:, 0], apart[:, 1])
    return related


def _boxes(shapes: Sequence[Shape], kinds: Sequence[str]) -> NDArray[np.float32]:
    """Rows (kind, left, top, right, bottom) in sides of the picture."""
    return np.array([(kinds.index(shape.kind), *extent(shape)) for shape in shapes], dtype=np.float32)
