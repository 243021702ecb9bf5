"""Layouts: boxes with class names, as tokens of a transformer (paper, section 4.3.1 and appendix E.2.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field as Range
from torch import Generator, Tensor, nn

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, Ports, Tensors, pad_stack
from ldmkit.data import NO_FIELDS, Field, Fields
from ldmkit.errors import DataError, RecipeError
from ldmkit_layout import boxes as rows
from ldmkit_layout.drawing import painted

if TYPE_CHECKING:
    from PIL.Image import Image

FREQUENCIES = 8  # of the Fourier features of a coordinate
PER_BOX = {"paper": 3, "boxes": 1}  # tokens


class LayoutConditioner(Conditioner):
    """Any number of boxes, each with a class: class, left, top, right, bottom, sides in [0, 1].

    Args:
        classes: how many classes there are, or their names in the order of their numbers; `fit` learns them from the data.
        form: `boxes`: a token a box, its class's row and Fourier features of its sides. `paper`: three tokens a box, its class,
            its top left and its bottom right, each corner a cell of a grid.
        most: boxes at most; of more, the largest are kept.
        least: the least area of a box, in shares of the image; smaller ones are left out.
        sections: cells a side of the grid of `paper` (the paper's: 90).
        width: of the tokens.
        depth: layers of the transformer that reads them; 0: none.
        heads: of its attention.

    Boxes are read in the order of their area, the largest first, so that their order says nothing. An image without a box is a
    layout: one token says so. The null is a learned token.
    """

    reads = aligned = ("boxes",)

    def __init__(
        self,
        *,
        classes: int | list[str] | None = None,
        form: Literal["boxes", "paper"] = "boxes",
        most: Annotated[int, Range(ge=1)] = 30,
        least: Annotated[float, Range(ge=0, lt=1)] = 1e-4,
        sections: Annotated[int, Range(ge=2)] = 90,
        width: Annotated[int, Range(ge=1)] = 128,
        depth: Annotated[int, Range(ge=0)] = 2,
        heads: Annotated[int, Range(ge=1)] = 4,
    ) -> None:
        super().__init__()
        if classes is None:
            raise RecipeError("the classes are not known", hint="give `classes`, or let `fit` learn them from the data")
        self.names = None if isinstance(classes, int) else rows.unique(classes)
        self.count = classes if isinstance(classes, int) else len(classes)
        if self.count < 1:
            raise RecipeError(f"classes is {classes!r}; at least one class is needed")
        if depth and width % heads:
            raise RecipeError(f"width is {width}, which {heads} heads do not divide", hint="choose a multiple")
        self.form, self.most, self.least, self.sections = form, most, least, sections
        self.emits = Ports(tokens=width, length=PER_BOX[form] * most)
        self.kinds = nn.Embedding(self.count + 1, width)  # the last row: an image without a box
        if form == "paper":
            self.cells = nn.Embedding(sections**2, width)
            self.places = nn.Embedding(PER_BOX[form] * most, width)
        else:
            self.sides = nn.Sequential(nn.Linear(8 * FREQUENCIES + 4, width), nn.SiLU(), nn.Linear(width, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False) if depth else None
        self.absent = nn.Parameter(torch.zeros(1, 1, width))

    @classmethod
    def fit(
        cls, options: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], fields: Fields = NO_FIELDS
    ) -> Mapping[str, Any]:
        """`classes` from what the source knows; else from the largest number in the boxes.

        Raises:
            DataError: the recipe's `classes` leave out a class of the data, or no sample has a box.
        """
        known = fields.get("boxes", Field("boxes"))
        if (given := options.get("classes")) is not None:
            rows.check_known(given, known)
            return {}
        if known.classes:
            return {"classes": list(known.names) if known.names else known.classes}
        found = [int(row[0]) for sample in samples if (own := sample["boxes"]) is not None for row in own]
        if not found:
            raise DataError("no sample has `boxes`", hint="choose data with boxes, or give `fields: {boxes: ...}`")
        return {"classes": max(found) + 1}

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """{"boxes": (n, 5)}: class, left, top, right, bottom; the largest first, at most `most`. n is 0 where there is none.

        Where both the source and the recipe name the classes, a box's class is matched by its name, whatever its number there.
        """
        known = self.known_fields.get("boxes", Field("boxes"))
        theirs = known.names if self.names is not None else None
        found = rows.checked(rows.as_rows(sample["boxes"], DataError), self.count, theirs, self.names, DataError)
        return {"boxes": rows.ordered(found, self.least, self.most)}

    def from_user(self, value: Any, size: tuple[int, int]) -> Tensors:
        """JSON or a list: [["cat", 0.1, 0.2, 0.5, 0.9], ...], each a class and left, top, right, bottom in [0, 1]."""
        found = rows.from_user(value, self._shown_names, self.count)
        return {"boxes": rows.ordered(found, 0.0, self.most)}

    def many(self, value: list[Any] | tuple[Any, ...]) -> bool:
        """A list of layouts (lists of boxes, or JSON) holds one an image; a list of boxes is one value."""
        return bool(value) and all(isinstance(one, str) or _is_layout(one) for one in value)

    def collate(self, prepared: list[Tensors]) -> Tensors:
        """{"boxes": (b, l, 5), "mask": (b, l)}, l at least 1: True where a box is."""
        padded, mask = pad_stack([row["boxes"] for row in prepared], 1)
        return {"boxes": padded, "mask": mask}

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """The transformer's tokens; a row without a box has the one that says so."""
        dtype = self.kinds.weight.dtype
        boxes, there = _on_canvas(prepared["boxes"], canvas), prepared["mask"]
        empty = ~there.any(1)
        kinds = boxes[..., 0].long().clamp(0, self.count - 1)
        kinds[empty, 0] = self.count
        mask = there.clone()
        mask[empty, 0] = True
        if self.form == "paper":
            tokens, mask = self._corners(kinds, boxes, mask, empty)
        else:
            told = self.sides(_fourier(boxes[..., 1:]).to(dtype)) * (~empty[:, None, None]).to(dtype)
            tokens = self.kinds(kinds) + told
        if self.transformer is not None:
            tokens = self.transformer(tokens, src_key_padding_mask=~mask)
        return Conditioning(tokens=(tokens * mask[..., None].to(tokens.dtype)).to(canvas.dtype), mask=mask)

    def _corners(self, kinds: Tensor, boxes: Tensor, mask: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        """Class, top left, bottom right of each box (b, 3 l, width), and their mask; of an empty layout the first alone."""
        cells = (boxes[..., 1:].clamp(0, 1) * (self.sections - 1)).round().long()
        first, last = (cells[..., i + 1] * self.sections + cells[..., i] for i in (0, 2))
        tokens = torch.stack([self.kinds(kinds), self.cells(first), self.cells(last)], dim=2).flatten(1, 2)
        tokens = tokens + self.places.weight[: tokens.shape[1]]
        spread = mask[..., None].repeat(1, 1, 3)
        spread[..., 1:] &= ~empty[:, None, None]
        return tokens, spread.flatten(1)

    def null(self, canvas: Canvas) -> Conditioning:
        """The learned token."""
        return Conditioning(tokens=self.absent.to(canvas.dtype))

    def preview(self, prepared: Tensors) -> Image:
        """The boxes with their names on a square."""
        boxes = prepared["boxes"]
        boxes = boxes[prepared["mask"]] if "mask" in prepared else boxes
        return painted(boxes, self._shown_names)

    @property
    def _shown_names(self) -> tuple[str, ...] | None:
        if self.names is not None:
            return self.names
        theirs = self.known_fields.get("boxes", Field("boxes")).names
        return theirs if theirs is not None and len(theirs) <= self.count else None


def _on_canvas(boxes: Tensor, canvas: Canvas) -> Tensor:
    """Boxes in shares of the image -> in shares of the canvas, of which the image may be the upper left."""
    if canvas.picture in (None, canvas.size):
        return boxes
    down, across = (side / whole for side, whole in zip(canvas.picture, canvas.size, strict=True))
    return boxes * boxes.new_tensor([1.0, across, down, across, down])


def _fourier(sides: Tensor) -> Tensor:
    """(..., 4) in [0, 1] -> (..., 4 + 8 * FREQUENCIES): themselves, and sines and cosines of pi, 2 pi, 4 pi ... times them."""
    rates = math.pi * 2.0 ** torch.arange(FREQUENCIES, device=sides.device, dtype=torch.float32)
    angles = (sides.float()[..., None] * rates).flatten(-2)
    return torch.cat([sides.float(), angles.sin(), angles.cos()], dim=-1)


def _is_layout(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(box, list | tuple) for box in value)
