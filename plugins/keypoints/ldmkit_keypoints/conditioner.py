"""Keypoints: named points, some of them absent, as tokens or as heat maps beside the latent."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field as Range
from torch import Generator, Tensor, nn

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, Ports, Tensors, pad_stack
from ldmkit.data import NO_FIELDS, Field, Fields
from ldmkit.errors import DataError, RecipeError
from ldmkit_keypoints import points as rows

if TYPE_CHECKING:
    from PIL.Image import Image

FREQUENCIES = 8  # of the Fourier features of a coordinate
SIDE = 128  # pixels of a preview


class KeypointsConditioner(Conditioner):
    """Named points, each at (x, y) in [0, 1] or absent; a name may be there more than once (two faces).

    Args:
        points: how many names there are, or the names in the order of their numbers; `fit` learns them from the data.
        port: `tokens`: a token a point that is there, its name's row and Fourier features of its place. `concat`: a map a name on
            the latent grid, 1 at its points and falling off as a Gaussian does, and one more that says that points are known.
        width: of the tokens.
        spread: standard deviation of the Gaussian, in shares of the image's longer side.
        most: tokens at most; of more, those of the first names stay.

    Points follow crops, and in a mirrored image left and right change places by name. An image without a point is a condition:
    one token says so, or maps of zeros. The null is a learned token, or zeros on all maps.
    """

    reads = aligned = ("keypoints",)

    def __init__(
        self,
        *,
        points: int | list[str] | None = None,
        port: Literal["tokens", "concat"] = "tokens",
        width: Annotated[int, Range(ge=1)] = 128,
        spread: Annotated[float, Range(gt=0)] = 0.05,
        most: Annotated[int, Range(ge=1)] = 64,
    ) -> None:
        super().__init__()
        if points is None:
            raise RecipeError("the points are not known", hint="give `points`, or let `fit` learn them from the data")
        self.names = None if isinstance(points, int) else rows.unique(points)
        self.count = points if isinstance(points, int) else len(points)
        if self.count < 1:
            raise RecipeError(f"points is {points!r}; at least one point is needed")
        self.port, self.spread, self.most = port, spread, most
        if port == "concat":
            self.emits = Ports(concat=self.count + 1)
            return
        self.emits = Ports(tokens=width, length=most)
        self.kinds = nn.Embedding(self.count + 1, width)  # the last row: an image without a point
        self.place = nn.Sequential(nn.Linear(4 * FREQUENCIES + 2, width), nn.SiLU(), nn.Linear(width, width))
        self.absent = nn.Parameter(torch.zeros(1, 1, width))

    @classmethod
    def fit(
        cls, options: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], fields: Fields = NO_FIELDS
    ) -> Mapping[str, Any]:
        """`points` from what the source knows; else from the largest number.

        Raises:
            DataError: the recipe's `points` leave out one of the data, or no sample has a point.
        """
        known = fields.get("keypoints", Field("keypoints"))
        if (given := options.get("points")) is not None:
            missing = [n for n in known.names or () if n not in given] if isinstance(given, list) else []
            if missing:
                raise DataError(
                    f"the data have the keypoints {rows.some(missing)}, and `points` lists {rows.some(given)}",
                    hint="add them, or leave `points` out: it is learned from the data",
                )
            return {}
        if known.classes:
            return {"points": list(known.names) if known.names else known.classes}
        found = [int(row[0]) for sample in samples if (own := sample["keypoints"]) is not None for row in own]
        if not found:
            raise DataError(
                "no sample has `keypoints`", hint="choose data that have them, or give `fields: {keypoints: ...}`"
            )
        return {"points": max(found) + 1}

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """{"points": (n, 3)}: number of the name, x, y, in the order of the names; n is 0 where there is none.

        Where both the source and the recipe name the points, one is matched by its name, whatever its number there.
        """
        theirs = self.known_fields.get("keypoints", Field("keypoints")).names if self.names is not None else None
        found = rows.as_rows(sample["keypoints"], DataError)
        return {"points": rows.checked(found, self.count, theirs, self.names, DataError)[: self.most]}

    def from_user(self, value: Any, size: tuple[int, int]) -> Tensors:
        """JSON, a mapping of name to (x, y), or a list of (name, x, y); x and y in [0, 1]."""
        return {"points": rows.from_user(value, self._shown_names, self.count)[: self.most]}

    def many(self, value: list[Any] | tuple[Any, ...]) -> bool:
        """A list of mappings, of JSON, or of lists of points holds one an image; a list of points is one value."""
        return bool(value) and all(isinstance(one, str | Mapping) or _is_points(one) for one in value)

    def collate(self, prepared: list[Tensors]) -> Tensors:
        """{"points": (b, l, 3), "mask": (b, l)}, l at least 1: True where a point is."""
        padded, mask = pad_stack([row["points"] for row in prepared], 1)
        return {"points": padded, "mask": mask}

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """Tokens of the points that are there, or the maps."""
        points, there = prepared["points"], prepared["mask"]
        kinds = points[..., 0].long().clamp(0, self.count - 1)
        if self.port == "concat":
            return Conditioning(concat=self._maps(kinds, points[..., 1:], there, canvas))
        empty = ~there.any(1)
        kinds[empty, 0] = self.count
        mask = there.clone()
        mask[empty, 0] = True
        down, across = (side / whole for side, whole in zip(canvas.picture or canvas.size, canvas.size, strict=True))
        told = self.place(_fourier(points[..., 1:] * points.new_tensor([across, down])).to(self.kinds.weight.dtype))
        tokens = (self.kinds(kinds) + told * ~empty[:, None, None]) * mask[..., None]
        return Conditioning(tokens=tokens.to(canvas.dtype), mask=mask)

    def _maps(self, kinds: Tensor, places: Tensor, there: Tensor, canvas: Canvas) -> Tensor:
        """(b, count + 1, *grid): of points of one name, the nearest counts."""
        pixels = canvas.picture or canvas.size  # places are shares of the image, which may be less than the canvas
        rows_, columns = (
            (torch.arange(cells, device=places.device) + 0.5) * side / cells
            for cells, side in zip(canvas.grid, canvas.size, strict=True)
        )
        down = rows_ - places[..., 1, None].float() * pixels[0]  # (b, l, h)
        across = columns - places[..., 0, None].float() * pixels[1]
        apart = down[..., :, None].square() + across[..., None, :].square()
        heat = torch.exp(-apart / (2 * (self.spread * max(pixels)) ** 2)) * there[..., None, None]
        maps = heat.new_zeros(len(places), self.count + 1, *canvas.grid)
        maps.scatter_reduce_(1, kinds[..., None, None].expand_as(heat), heat, "amax")
        maps[:, -1] = 1
        return maps.to(canvas.dtype)

    def null(self, canvas: Canvas) -> Conditioning:
        """The learned token, or zeros: not even that points are known."""
        if self.port == "concat":
            return Conditioning(concat=canvas.zeros(1, self.emits.concat, *canvas.grid))
        return Conditioning(tokens=self.absent.to(canvas.dtype))

    def preview(self, prepared: Tensors) -> Image:
        """The points with their names on a square."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (SIDE, SIDE), (24, 24, 28))
        pen, names = ImageDraw.Draw(image), self._shown_names
        points = prepared["points"]
        for kind, x, y in (points[prepared["mask"]] if "mask" in prepared else points).tolist():
            color = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(kind * 0.618034 % 1.0, 0.6, 1.0))
            at = (x * (SIDE - 1), y * (SIDE - 1))
            pen.ellipse([at[0] - 3, at[1] - 3, at[0] + 3, at[1] + 3], fill=color)
            known = names is not None and int(kind) < len(names)
            pen.text((at[0] + 5, at[1] - 6), names[int(kind)] if known and names else f"{int(kind)}", fill=color)
        return image

    @property
    def _shown_names(self) -> tuple[str, ...] | None:
        if self.names is not None:
            return self.names
        theirs = self.known_fields.get("keypoints", Field("keypoints")).names
        return theirs if theirs is not None and len(theirs) <= self.count else None


def _fourier(places: Tensor) -> Tensor:
    """(..., 2) in [0, 1] -> (..., 2 + 4 * FREQUENCIES): themselves, and sines and cosines of pi, 2 pi, 4 pi ... times them."""
    rates = math.pi * 2.0 ** torch.arange(FREQUENCIES, device=places.device, dtype=torch.float32)
    angles = (places.float()[..., None] * rates).flatten(-2)
    return torch.cat([places.float(), angles.sin(), angles.cos()], dim=-1)


def _is_points(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(row, list | tuple) for row in value)
