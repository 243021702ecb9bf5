"""What a data source knows of a field before any sample is decoded: its kind, classes, names, colours, range."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, Self

from ldmkit.errors import CheckpointError

Kind = Literal["image", "map", "label", "text", "boxes", "keypoints", "number", "numbers", "words", "other"]
Color = tuple[int, int, int]
SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}
SIDES |= {"l": "r", "r": "l", "L": "R", "R": "L"}
# a word of its own, or of a name in camel case; one letter only between separators: l_eye, eye.R
SIDE = re.compile(
    r"(?<![a-z])(?:left|right|Left|Right)(?![a-z])|(?<![A-Z])(?:LEFT|RIGHT)(?![A-Z])|(?<![A-Za-z])[lrLR](?![A-Za-z])"
)


@dataclass(frozen=True)
class Field:
    """What a field of a sample holds, known without decoding it.

    =========  ===========================================================  ==============================
    kind       in a source's sample                                         in a `Dataset`'s sample
    =========  ===========================================================  ==============================
    image      PIL image                                                    float (c, h, w) in [-1, 1]
    map        PIL image or integer array (h, w) of class ids               int64 (h, w), same ids
    boxes      rows (class id, left, top, right, bottom), sides in [0, 1]   float (n, 5), cut to the view
    keypoints  rows (point id, x, y), in [0, 1]; no row: absent             float (n, 3), those in the view
    label      int                                                          int
    text       str                                                          str
    number     float                                                        float
    numbers    floats, one a name; NaN: missing                             float (n,)
    words      the words that hold, of `names`; none is fine                the same
    other      anything; float arrays (h, w) or (c, h, w) can be aligned    as it is; aligned: float (c, h, w)
    =========  ===========================================================  ==============================

    Attributes:
        classes: the number of ids of labels, maps, boxes, keypoints and words; in a map, an id outside [0, classes) means
            unlabelled.
        names: of the classes, keypoints or words, by id; of numbers, in their order.
        palette: (red, green, blue) of each class, 0 to 255, by id: how the source's files paint a map.
        ignore: the number that a map's files hold where no class is known.
        channels: of images: 1 (grey) or 3.
        range: the numbers in an image's files that stand for black and white; None: the full range of their type.
        background: what shows through an image's transparent pixels.
        values: the numbers that a map's files hold for the classes, by id, where they are others than 0, 1, 2 ...
        aligned: an image that lies pixel on pixel with `image`: cropped, mirrored and resized with it.
    """

    kind: Kind
    classes: int | None = None
    names: tuple[str, ...] | None = None
    palette: tuple[Color, ...] | None = None
    ignore: int | None = None
    channels: int | None = None
    range: tuple[float, float] | None = None
    background: Color | None = None
    values: tuple[int, ...] | None = None
    aligned: bool = False

    def mirrored(self) -> tuple[int, ...] | None:
        """The id of each name in a mirrored image: where `left` and `right` are words of a name, those two change places
        (`left_eye` and `right_eye`). A name whose counterpart is not there keeps its id. None without names."""
        if self.names is None:
            return None
        ids = {name: index for index, name in enumerate(self.names)}
        return tuple(ids.get(_other_side(name), index) for index, name in enumerate(self.names))

    def to_json(self) -> dict[str, Any]:
        """JSON values: what is known, and nothing else."""
        return {key: _listed(value) for key, value in vars(self).items() if value is not None and value is not False}

    @classmethod
    def read(cls, described: Mapping[str, Any]) -> Self:
        """What `to_json` wrote; keys of a later version are passed over. Raises `CheckpointError` without a kind."""
        if "kind" not in described:
            raise CheckpointError(f"a field is described by its kind and more; given: {dict(described)}")
        known = {field.name for field in fields(cls)}
        return cls(**{key: _tupled(value) for key, value in described.items() if key in known})


FORMS: Mapping[str, str] = {
    "image": "an image",
    "map": "class ids (h, w), aligned",
    "boxes": "rows (class, left, top, right, bottom), sides in [0, 1], aligned",
    "keypoints": "rows (point, x, y) in [0, 1], no row where a point is absent, aligned",
    "label": "the number of a class",
    "text": "a text",
    "number": "a number",
    "numbers": "numbers, NaN where one is missing",
    "words": "the words that hold",
    "other": "anything",
}


Fields = Mapping[str, Field]
NO_FIELDS: Fields = MappingProxyType({})


def _other_side(name: str) -> str:
    """The name with its words `left` and `right` exchanged, in their case: "LeftEye" -> "RightEye"."""
    return SIDE.sub(lambda found: SIDES[found[0]], name)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


def described(field: Field) -> str:
    """A field for a person to read: its form, and the names there are."""
    kind = f"{'a grey' if field.channels == 1 else 'a colour'} image" if field.channels else FORMS[field.kind]
    aligned = ", aligned" if field.aligned else ""
    return f"{kind}{aligned}" + (f": {', '.join(field.names)}" if field.names else "")
