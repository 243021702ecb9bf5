"""Tensors to pictures, and sheets of pictures with words a person can read."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldmkit.files import replacing

# A sheet's paper is transparent (white where transparency is lost), its ink can be read on white and on black.
PAPER, INK, FAINT = (255, 255, 255, 0), (104, 108, 118, 255), (125, 129, 139, 255)
GAP, SMALL, LARGE = 12, 15, 20  # pixels
LEAST = 128  # the least height of a picture on a sheet

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def to_pil(image: Tensor) -> Image.Image:
    """One picture (c, h, w) in [-1, 1] -> 8-bit PIL; 1 channel is grey, 3 colour, 4 colour with alpha; else the first one."""
    levels = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    channels = levels.shape[0]
    if channels in (3, 4):
        return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
    return Image.fromarray(levels[0].contiguous().numpy())


def to_tensor(image: Image.Image, channels: int = 3) -> Tensor:
    """PIL -> (channels, h, w) float in [-1, 1]; the inverse of `to_pil` for 1, 3 and 4 channels."""
    pixels = np.array(image.convert({1: "L", 4: "RGBA"}.get(channels, "RGB")))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1.0


def enlarge(image: Image.Image, height: int) -> Image.Image:
    """The picture at the given height, its pixels seen as squares; larger pictures are reduced smoothly."""
    width = max(1, round(image.width * height / image.height))
    how = Image.Resampling.NEAREST if height >= image.height else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((width, height), how)


@dataclass(frozen=True)
class Example:
    """Pictures that belong together (condition, sample, truth), each with its title, and words under them."""

    pictures: Sequence[tuple[str, Image.Image]]
    caption: str = ""


def contact_sheet(
    images: Tensor | Sequence[Image.Image],
    *,
    captions: Sequence[str] | None = None,
    title: str = "",
    columns: int | None = None,
) -> Image.Image:
    """Pictures (n, c, h, w) in [-1, 1] on one sheet, each with a caption under it; about square by default."""
    pictures = [to_pil(image) for image in images] if isinstance(images, Tensor) else list(images)
    words = captions or [""] * len(pictures)
    examples = [Example([("", picture)], word) for picture, word in zip(pictures, words, strict=True)]
    return sheet(examples, title=title, columns=columns or max(1, round(len(pictures) ** 0.5)))


def sheet(examples: Sequence[Example], *, title: str = "", columns: int | None = None) -> Image.Image:
    """Examples in a grid. Titles stand once over each column, captions under each example.

    Small pictures are enlarged by a whole number with sharp pixels, so that what is seen is what the model made.
    """
    if not examples:
        raise ValueError("a sheet needs at least one example")
    columns = min(columns or max(1, 8 // len(examples[0].pictures)), len(examples))
    height = _height(examples)
    cells = [_cell(example, height) for example in examples]
    width = max(cell.width for cell in cells)
    header = _header(examples[0], height, columns, width, title)
    lines = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in line) for line in lines]
    page = Image.new(
        "RGBA",
        (max(header.width, GAP + columns * (width + 2 * GAP) - GAP), header.height + sum(heights) + GAP * len(lines)),
        PAPER,
    )
    page.paste(header, (0, 0))
    top = header.height
    for line, tall in zip(lines, heights, strict=True):
        for column, cell in enumerate(line):
            page.paste(cell, (GAP + column * (width + 2 * GAP), top))
        top += tall + GAP
    return page


def save(image: Image.Image, path: Path) -> None:
    """Writes a PNG in one piece, so that a viewer that watches the file never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


def font(size: int) -> Font:
    """Pillow's own font: the same on every machine."""
    return ImageFont.load_default(size)


def wrap(text: str, face: Font, width: int, lines: int = 3) -> list[str]:
    """Words on lines of at most `width` pixels, at most `lines` of them; what does not fit ends in an ellipsis."""
    words = printable(text).split()
    out: list[str] = []
    while words:
        taken = _fitting(words, face, width)
        line = " ".join(words[:taken])
        words = words[taken:]
        if len(out) == lines - 1 and (words or face.getlength(line) > width):
            return [*out, _ellipsis(" ".join([line, *words]), face, width)]
        out.append(_ellipsis(line, face, width) if face.getlength(line) > width else line)
    return out


def printable(text: str) -> str:
    """Text without control characters, which a font shows as boxes."""
    return "".join(" " if unicodedata.category(letter).startswith("C") else letter for letter in text)


def _fitting(words: list[str], face: Font, width: int) -> int:
    taken = 1
    while taken < len(words) and face.getlength(" ".join(words[: taken + 1])) <= width:
        taken += 1
    return taken


def _ellipsis(text: str, face: Font, width: int) -> str:
    while text and face.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _height(examples: Sequence[Example]) -> int:
    """The common height: a whole multiple of the tallest picture, at least `LEAST`."""
    tallest = max(picture.height for example in examples for _, picture in example.pictures)
    return tallest * max(1, -(-LEAST // tallest))


def _cell(example: Example, height: int) -> Image.Image:
    """One example: its pictures side by side, its caption below."""
    pictures = [enlarge(picture, height) for _, picture in example.pictures]
    width = sum(picture.width for picture in pictures) + 2 * (len(pictures) - 1)
    face = font(SMALL)
    words = wrap(example.caption, face, width)
    cell = Image.new("RGBA", (width, height + (6 + len(words) * (SMALL + 5) if words else 0)), PAPER)
    left = 0
    for picture in pictures:
        cell.paste(picture, (left, 0))
        left += picture.width + 2
    draw = ImageDraw.Draw(cell)
    for index, line in enumerate(words):
        draw.text((0, height + 4 + index * (SMALL + 5)), line, fill=INK, font=face)
    return cell


def _header(example: Example, height: int, columns: int, width: int, title: str) -> Image.Image:
    """The title of the sheet, and the titles of the pictures once over every column."""
    face, small = font(LARGE), font(SMALL)
    titled = any(name for name, _ in example.pictures)
    top = GAP + (LARGE + GAP if title else 0)
    wide = GAP + columns * (width + 2 * GAP) - GAP
    out = Image.new(
        "RGBA", (max(wide, int(face.getlength(title)) + 2 * GAP), top + (SMALL + 9 if titled else 0)), PAPER
    )
    draw = ImageDraw.Draw(out)
    if title:
        draw.text((GAP, GAP), printable(title), fill=INK, font=face)
    for column in range(columns if titled else 0):
        left = GAP + column * (width + 2 * GAP)
        for name, picture in example.pictures:
            own = enlarge(picture, height).width
            words = wrap(name, small, own, lines=1)
            draw.text((left, top), words[0] if words else "", fill=FAINT, font=small)
            left += own + 2
    return out
