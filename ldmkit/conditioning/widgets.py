"""What a person is shown to give a condition with: plain data, no tensors, no library of widgets.

`Conditioner.widget` returns one of these; a page such as `ldmkit demo` draws it. Whatever is drawn, `Conditioner.from_user` gets
what the command line would give it, a `str`: the text below, and for images the path of a file. So one reader serves both, and
the command that makes the same image can be written out.

| widget | what `from_user` gets |
|---|---|
| `Text` | the text |
| `Choice` | the chosen name |
| `Choices` | the chosen names, joined by ", "; nothing chosen is an empty text |
| `Number` | the number: "0.5" |
| `Numbers` | a JSON object, name to number; one that is not given is not in it: '{"age": 31, "height": 1.7}' |
| `ImageDrop` | the path of a PNG |
| `LabelMapCanvas` | the path of an indexed PNG, whose numbers are the classes' |
| `Mask` | the path of a grey PNG, white where the person painted |
| `ImageAndMask` | the paths of both, "image.png,mask.png" |
| `Boxes` | a JSON list of [class id, left, top, right, bottom], sides in [0, 1] of the image's, from its upper left corner |
| `File` | the path of the file |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ldmkit.errors import PluginError
from ldmkit.fields import Color, Field


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text box.

    Attributes:
        lines: how tall it is.
        placeholder: shown while it is empty.
        examples: texts that can be taken with a click.
        help: a line below it, as in every other widget.
    """

    lines: int = 1
    placeholder: str = ""
    examples: tuple[str, ...] = ()
    help: str = ""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several names, in a menu."""

    names: tuple[str, ...]
    help: str = ""

    def __post_init__(self) -> None:
        _check_names(self, self.names)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Any number of several names, none and all included."""

    names: tuple[str, ...]
    help: str = ""

    def __post_init__(self) -> None:
        _check_names(self, self.names)


@dataclass(frozen=True, kw_only=True)
class Number:
    """A slider from `low` to `high`, both included.

    Attributes:
        name: what is measured; in `Numbers` the key.
        value: where it stands at first; default: in the middle.
        step: the distance of two values that can be chosen; None: fine enough for any.
    """

    name: str = ""
    low: float = 0.0
    high: float = 1.0
    value: float | None = None
    step: float | None = None
    help: str = ""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise PluginError(f"a Number goes from low to high; given: {self.low:g} to {self.high:g}")
        if self.value is not None and not self.low <= self.value <= self.high:
            raise PluginError(f"a Number from {self.low:g} to {self.high:g} cannot stand at {self.value:g}")


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Several sliders, each of which can be left out where `optional`."""

    numbers: tuple[Number, ...]
    optional: bool = True
    help: str = ""

    def __post_init__(self) -> None:
        _check_names(self, [number.name for number in self.numbers])


@dataclass(frozen=True, kw_only=True)
class ImageDrop:
    """A place to drop an image.

    Attributes:
        size: (h, w) in pixels that the condition is used at, for the page to say; None: any.
    """

    size: tuple[int, int] | None = None
    help: str = ""


@dataclass(frozen=True, kw_only=True)
class LabelMapCanvas:
    """A canvas to paint classes on, one colour each.

    Attributes:
        names: of the classes, by id.
        palette: (red, green, blue) of each, 0 to 255.
        values: the numbers that a file holds for the classes, by id, where they are others than 0, 1, 2 ...
        ignore: the number of a pixel without a class, for an eraser; None: every pixel has a class.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    values: tuple[int, ...] | None = None
    ignore: int | None = None
    help: str = ""

    def __post_init__(self) -> None:
        _check_names(self, self.names)
        _check_length(self, "colours", self.palette, self.names)
        if self.values is not None:
            _check_length(self, "values", self.values, self.names)
        numbers = [*(self.values or range(len(self.names))), *([] if self.ignore is None else [self.ignore])]
        if wrong := [number for number in numbers if not 0 <= number <= 255]:
            raise PluginError(
                f"a LabelMapCanvas is kept as an indexed PNG, whose numbers are 0 to 255; given: {wrong[0]}"
            )


@dataclass(frozen=True, kw_only=True)
class Mask:
    """A canvas to paint a mask on."""

    help: str = ""


@dataclass(frozen=True, kw_only=True)
class ImageAndMask:
    """A place to drop an image and paint on it what is made anew."""

    help: str = ""


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Boxes drawn on a grid, each of a class.

    Attributes:
        names: of the classes, by id.
        palette: (red, green, blue) of each, 0 to 255; None: the page's own.
        most: the most boxes.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...] | None = None
    most: int = 32
    help: str = ""

    def __post_init__(self) -> None:
        _check_names(self, self.names)
        if self.palette is not None:
            _check_length(self, "colours", self.palette, self.names)


@dataclass(frozen=True, kw_only=True)
class File:
    """A place to drop a file that is no image.

    Attributes:
        suffixes: those allowed, with their dot: (".npy",); empty: any.
    """

    suffixes: tuple[str, ...] = ()
    help: str = ""


Widget: TypeAlias = (
    Text | Choice | Choices | Number | Numbers | ImageDrop | LabelMapCanvas | Mask | ImageAndMask | Boxes | File
)


def of_field(field: Field) -> Widget:
    """The widget for one field, by what its source knows: a text box where nothing else is clear."""
    names = field.names or tuple(map(str, range(field.classes or 0)))
    if field.kind == "image":
        return ImageDrop()
    if field.kind == "label" and names:
        return Choice(names=names)
    if field.kind == "boxes" and names:
        return Boxes(names=names)
    if field.kind == "map" and field.palette and len(field.palette) == len(names):
        return LabelMapCanvas(names=names, palette=field.palette, values=field.values, ignore=field.ignore)
    return Text()


def _check_names(widget: object, names: Sequence[str]) -> None:
    if not names or len(set(names)) < len(names) or "" in names:
        raise PluginError(f"a {type(widget).__name__} needs names, each another one; given: {list(names)}")


def _check_length(widget: object, what: str, values: Sequence[object], names: Sequence[str]) -> None:
    if len(values) != len(names):
        raise PluginError(f"a {type(widget).__name__} has {len(names)} names and {len(values)} {what}")
