"""What `ldmkit sample` writes: an image a file that says what made it, `samples.jsonl`, and all of them on one grid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, PngImagePlugin

from ldmkit.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from ldmkit.latent_diffusion import LatentDiffusion

PROGRESS = "progress.png"
LIST = "samples.jsonl"
KEY = "ldmkit"  # of the text in a PNG
CAPTION = 14  # pixels of a line above an image


@dataclass(frozen=True)
class Facts:
    """What the images were made with."""

    run: str
    model: LatentDiffusion
    values: Mapping[str, Any]  # slot -> a value, or a list of them, one per image in turn
    seed: int
    settings: Mapping[str, Any]  # those that were asked for; the rest is the model's

    def of(self, row: int) -> dict[str, Any]:
        """The facts of image `row`, as JSON values."""
        saved = {k: v for k, v in self.model.sampling.items() if k in ("sampler", "steps", "guidance")}
        return {
            "conditions": self.conditions(row),
            "seed": self.seed + row,
            **saved,
            **self.settings,
            "model": str(self.run),
            "configuration": _digest(self.model.config),
        }

    def conditions(self, row: int) -> dict[str, Any]:
        """Slot -> the value of image `row`."""
        return {slot: v[row % len(v)] if isinstance(v, list) else v for slot, v in self.values.items()}


def _digest(config: Mapping[str, Any]) -> str:
    from ldmkit.latent_diffusion.draws import digest

    return digest(json.loads(json.dumps(config, default=str)))[:16]


def write(images: Sequence[Image.Image], folder: Path, facts: Facts, way: Image.Image | None = None) -> list[Path]:
    """The grid, then one PNG an image, named by its seed; beside them `samples.jsonl` and the way there.

    Raises UsageError where `folder` has images already, ResourceError where it cannot be written.
    """
    rows = [facts.of(row) for row in range(len(images))]
    several = any(isinstance(value, list) for value in facts.values.values())
    titles = [", ".join(map(str, facts.conditions(row).values())) for row in range(len(images))] if several else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if there := sorted(path.name for path in folder.glob("*.png")):
            raise UsageError(
                f"{folder} has images already ({', '.join(there[:3])}); nothing is overwritten",
                hint="choose another --out DIR",
            )
        paths = [folder / f"seed-{row['seed']:05d}.png" for row in rows]
        sheet = grid(images, titles=titles)
        sheet.save(folder / "grid.png")
        for path, image, row in zip(paths, images, rows, strict=True):
            text = PngImagePlugin.PngInfo()
            text.add_itxt(KEY, json.dumps(row, ensure_ascii=False, default=str))
            image.save(path, pnginfo=text)
        lines = [
            json.dumps({"file_name": path.name, **row}, ensure_ascii=False, default=str)
            for path, row in zip(paths, rows, strict=True)
        ]
        (folder / LIST).write_text("\n".join(lines) + "\n", encoding="utf-8")
        if way is not None:
            way.save(folder / PROGRESS)
    except OSError as error:
        raise ResourceError(
            f"cannot write to {folder}: {error.strerror or error}", hint="choose another place: --out DIR"
        ) from error
    return [folder / "grid.png", *paths]


def grid(images: Sequence[Image.Image], columns: int | None = None, titles: Sequence[str] | None = None) -> Image.Image:
    """All images on one sheet, as square as can be unless `columns` are given, 2 pixels apart, each below its title."""
    columns = columns or max(1, round(len(images) ** 0.5 + 0.49))
    above = CAPTION if titles is not None else 0
    width, height = images[0].width + 2, images[0].height + 2 + above
    rows = -(-len(images) // columns)
    sheet = Image.new(images[0].mode, (columns * width - 2, rows * height - 2), "white")
    pen = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = index % columns * width, index // columns * height
        sheet.paste(image, (left, top + above))
        if titles is not None:
            pen.text((left + 1, top + 1), _fitting(pen, titles[index], image.width - 2), fill=0)
    return sheet


def _fitting(pen: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """As much of a text as has room in one line."""
    if pen.textlength(text) <= width:
        return text
    while text and pen.textlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
