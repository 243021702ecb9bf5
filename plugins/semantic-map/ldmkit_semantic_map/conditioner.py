"""Semantic label maps: one-hot, halved to the latent grid, mapped to few channels (paper, section 4.3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, ForeignStage, Ports, Tensors
from ldmkit.conditioning.widgets import LabelMapCanvas
from ldmkit.data import NO_FIELDS, Field, Fields
from ldmkit.errors import CheckpointError, DataError, RecipeError, UsageError
from ldmkit.images import read_field
from ldmkit_semantic_map.maps import check_range, distinct_colours, paint, read_ids

if TYPE_CHECKING:
    from PIL.Image import Image


class SemanticMapConditioner(Conditioner):
    """A label map, pixel on pixel with the image, by concat.

    Args:
        classes: how many there are; `fit` learns it from the palette or the data.
        channels: channels after the learned 1x1 map (paper: 182 classes to 3).
        ignore: a number in the map that is no class (255 in many data sets): such pixels are all zeros.
        palette: (red, green, blue) of each class, 0 to 255: reads maps that are RGB pictures, and colours previews.

    The null is one learned value a channel, the same everywhere; it starts at 0, as what a map of ignored pixels gives.
    Raises RecipeError where the number of classes is not known or contradicts the palette, and for options out of
    range.
    """

    reads = aligned = ("map",)

    def __init__(
        self,
        *,
        classes: int | None = None,
        channels: int = 3,
        ignore: int | None = None,
        palette: list[tuple[int, int, int]] | None = None,
    ) -> None:
        super().__init__()
        if palette is not None:
            _check_palette(palette, classes)
        classes = classes or (len(palette) if palette else None)
        if classes is None:
            raise RecipeError(
                "the number of classes is not known", hint="give `classes`, or let `fit` learn it from the data"
            )
        if classes < 1:
            raise RecipeError(f"classes is {classes}; at least one class is needed")
        if ignore is not None and 0 <= ignore < classes:
            raise RecipeError(
                f"ignore is {ignore}, which is one of the {classes} classes", hint=f"classes are 0 to {classes - 1}"
            )
        self.classes, self.ignore = classes, ignore
        self.palette = palette
        self.emits = Ports(concat=channels)
        self.channel_mapper = nn.Conv2d(classes, channels, 1, bias=False)
        self.absent = nn.Parameter(torch.zeros(channels))

    @classmethod
    def fit(
        cls, options: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], fields: Fields = NO_FIELDS
    ) -> Mapping[str, Any]:
        """`classes`, `ignore` and `palette` from what the source knows; else `classes` from the palette or the maps.

        A class that no training map shows is a class all the same, where the source or the palette knows it. Raises `DataError`
        where the recipe has fewer classes than the data, or no sample has a map.
        """
        known = fields.get("map", Field("map"))
        palette, ignore, given = options.get("palette"), options.get("ignore"), options.get("classes")
        classes = given or (len(palette) if palette is not None else None)
        if known.kind == "map" and known.classes:
            if classes is not None and known.classes > classes:
                raise DataError(
                    f"the maps have {known.classes} classes, and the recipe says {classes}",
                    hint="leave `classes` and `palette` out: they are learned from the data",
                )
            return _learned(options, known, classes or known.classes)
        if classes is not None:
            return {} if given is not None else {"classes": classes}
        largest = -1
        for sample in samples:
            if (value := sample["map"]) is not None:
                ids = read_ids(value, None, ignore, DataError)
                kept = ids if ignore is None else ids[ids != ignore]
                largest = max(largest, int(kept.max()) if kept.numel() else -1)
        if largest < 0:
            raise DataError(
                "no sample has a label `map`", hint="choose data with label maps, or give `fields: {map: ...}`"
            )
        return {"classes": largest + 1}

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """{"map": (h, w) int64}; raises `DataError` for a number that is no class, or a colour that is not in the palette."""
        ids = read_ids(sample["map"], self.palette, self.ignore, DataError)
        check_range(ids, self.classes, self.ignore, DataError)
        return {"map": ids}

    def from_user(self, value: Any, size: tuple[int, int]) -> Tensors:
        """A path, an image, or an integer array or tensor, read as the data's own maps are: by their colours, their numbers.

        It is cut to the image's shape in the middle and brought to its size by nearest neighbour.
        """
        ids = read_field(value, self._known)
        check_range(ids, self.classes, self.ignore, UsageError)
        return {"map": read_field(ids, Field("map"), size)}

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """One-hot maps, halved bilinearly while they stay as large as the latent grid, then the 1x1 channel map."""
        return Conditioning(
            concat=self.channel_mapper(
                _to_grid(canvas.extend(self._one_hot(prepared["map"], canvas.dtype)), canvas.grid)
            )
        )

    def null(self, canvas: Canvas) -> Conditioning:
        """The learned value of each channel, everywhere."""
        return Conditioning(concat=self.absent[None, :, None, None].expand(1, -1, *canvas.grid).to(canvas.dtype))

    def preview(self, prepared: Tensors) -> Image:
        """The map in the palette's colours."""
        return paint(prepared["map"].cpu(), self.palette or distinct_colours(self.classes), self.ignore)

    def widget(self) -> LabelMapCanvas:
        """A canvas with a colour for each class: the palette's, or hues far apart."""
        known = self._known
        named = tuple(known.names or ())[: self.classes]
        colours = self.palette or distinct_colours(self.classes)
        return LabelMapCanvas(
            names=(*named, *map(str, range(len(named), self.classes))),
            palette=tuple((int(red), int(green), int(blue)) for red, green, blue in colours),
            values=None if known.values is None else known.values[: self.classes],
            ignore=known.ignore if known.ignore is not None and 0 <= known.ignore <= 255 else None,
        )

    @property
    def _known(self) -> Field:
        """What is known of a map's files: the data source's, with the recipe's palette and ignored number before it."""
        known = self.known_fields.get("map", Field("map"))
        if self.palette is not None:
            known = replace(known, palette=tuple(self.palette))
        return replace(known, ignore=self.ignore if self.ignore is not None else known.ignore)

    @classmethod
    def from_foreign(cls, stage: ForeignStage) -> Self | None:
        """CompVis' `SpatialRescaler` of a label map.

        Raises CheckpointError where its weights are not in the checkpoint.
        """
        if stage.target.rpartition(".")[2] != "SpatialRescaler" or stage.params.get("out_channels") is None:
            return None
        weight = stage.tensors.get("channel_mapper.weight")
        if weight is None or "channel_mapper.bias" in stage.tensors:
            raise CheckpointError(
                "a SpatialRescaler with a channel map (channel_mapper.weight) and no bias was expected"
            )
        conditioner = cls(classes=weight.shape[1], channels=weight.shape[0])
        conditioner.load_state_dict({"channel_mapper.weight": weight, "absent": torch.zeros(weight.shape[0])})
        return conditioner

    def _one_hot(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """ids (b, h, w) -> (b, classes, h, w); an ignored pixel is zero in every class."""
        numbers = torch.arange(self.classes, device=ids.device)
        return (ids[:, None] == numbers[None, :, None, None]).to(dtype)


def _learned(options: Mapping[str, Any], known: Field, classes: int) -> dict[str, Any]:
    """What the source knows and the recipe does not say."""
    learned: dict[str, Any] = {"classes": classes}
    if known.palette is not None and len(known.palette) == classes:
        learned["palette"] = [list(color) for color in known.palette]
    if known.ignore is not None and known.ignore >= classes:
        learned["ignore"] = known.ignore
    return {name: value for name, value in learned.items() if options.get(name) is None}


def _to_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """(b, c, h, w) -> (b, c, *grid): halved as often as it fits, which is all there is to do at the paper's sizes."""
    while maps.shape[-2] >= 2 * grid[0] and maps.shape[-1] >= 2 * grid[1]:
        maps = F.interpolate(maps, (maps.shape[-2] // 2, maps.shape[-1] // 2), mode="bilinear")
    return maps if maps.shape[-2:] == grid else F.interpolate(maps, grid, mode="bilinear")


def _check_palette(palette: list[tuple[int, int, int]], classes: int | None) -> None:
    if classes is not None and classes != len(palette):
        raise RecipeError(f"classes is {classes}, and palette has {len(palette)} colours", hint="leave classes out")
    if not palette:
        raise RecipeError("palette is empty", hint="give (red, green, blue) for each class, or leave palette out")
    for colour in palette:
        if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
            raise RecipeError(f"palette holds {tuple(colour)}; a colour is (red, green, blue), each from 0 to 255")
