"""What sampling returns: images that know their conditions and seeds."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

if TYPE_CHECKING:
    from PIL.Image import Image


class SampledImages(list["Image"]):
    """A list of Pillow images, as before anything knew more; a slice of it is one too.

    Args:
        images: one a row.
        conditions: slot -> value, as it was given, one mapping an image.
        seeds: the seed each image was drawn with: `sample(seed=seeds[i], count=1)` with its conditions gives image i again.

    In a notebook it shows itself as a grid.
    """

    def __init__(
        self,
        images: Iterable[Image] = (),
        *,
        conditions: Sequence[Mapping[str, Any]] = (),
        seeds: Iterable[int] = (),
    ) -> None:
        super().__init__(images)
        self.conditions = [dict(row) for row in conditions]
        self.seeds = list(seeds)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> SampledImages: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Image | SampledImages:
        if isinstance(index, slice):
            return SampledImages(super().__getitem__(index), conditions=self.conditions[index], seeds=self.seeds[index])
        return super().__getitem__(index)

    def grid(self, columns: int | None = None) -> Image:
        """All images on one sheet (see `sheet`)."""
        return sheet(self, columns)

    def _repr_html_(self) -> str:
        """The images side by side, each with its seed and its conditions."""
        return f"<div>{''.join(map(self._cell, range(len(self))))}</div>"

    def _cell(self, row: int) -> str:
        lines = [f"seed {self.seeds[row]}"] if row < len(self.seeds) else []
        if row < len(self.conditions):
            lines += [f"{slot}: {shown(value)}" for slot, value in self.conditions[row].items()]
        text = "<br>".join(map(html.escape, lines))
        picture = f'<img src="{data_url(self[row])}" alt="{html.escape(", ".join(lines))}">'
        return f'<figure style="display:inline-block;margin:4px">{picture}<figcaption>{text}</figcaption></figure>'


def sheet(images: Sequence[Image], columns: int | None = None) -> Image:
    """All images on one sheet, as square as can be unless `columns` are given, 2 pixels apart. At least one image."""
    from PIL import Image

    columns = columns or max(1, round(len(images) ** 0.5 + 0.49))
    width, height = images[0].width + 2, images[0].height + 2
    rows = -(-len(images) // columns)
    whole = Image.new(images[0].mode, (columns * width - 2, rows * height - 2), "white")
    for index, image in enumerate(images):
        whole.paste(image, (index % columns * width, index // columns * height))
    return whole


def data_url(image: Image) -> str:
    """The image within a page: a PNG as text."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shown(value: Any) -> str:
    """A condition in a few words: text and numbers as they are, all else by its kind."""
    if isinstance(value, str | int | float):
        return value if isinstance(value, str) else f"{value:g}"
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__}{'' if shape is None else f' {tuple(shape)}'}"
