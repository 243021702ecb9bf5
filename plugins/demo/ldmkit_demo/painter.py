"""The inputs that are drawn or dropped: one component, whose script is `painter.js`. It sends JSON, and nothing is uploaded."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ldmkit.conditioning.widgets import Boxes, File, ImageAndMask, ImageDrop, LabelMapCanvas, Mask, Widget
from ldmkit_demo.files import MOST_BYTES, MOST_SIDE

PAINTED = (LabelMapCanvas, Mask, ImageDrop, ImageAndMask, Boxes, File)
SCRIPT = (Path(__file__).parent / "painter.js").read_text(encoding="utf-8")
KINDS = {
    LabelMapCanvas: "map",
    Mask: "mask",
    ImageDrop: "image",
    ImageAndMask: "image-mask",
    Boxes: "boxes",
    File: "file",
}
HUES = ("#e15759", "#4e79a7", "#59a14f", "#f28e2b", "#b07aa1", "#76b7b2", "#edc948", "#ff9da7")


def painter(widget: Widget, size: tuple[int, int], slot: str) -> gr.HTML:
    """A canvas of `size` (h, w), or a place to drop a file."""
    facts: dict[str, Any] = {
        "kind": KINDS[type(widget)],
        "height": size[0],
        "width": size[1],
        "side": MOST_SIDE,
        "bytes": MOST_BYTES,
        "slot": slot,
        "brushes": _brushes(widget),
        "accept": ",".join(widget.suffixes) if isinstance(widget, File) else "image/*",
        "most": widget.most if isinstance(widget, Boxes) else 0,
    }
    # The facts lie in an attribute: the page's templates would read braces and dollars as their own.
    template = f'<div class="painter" data-facts="{_quoted(json.dumps(facts))}"></div>'
    return gr.HTML(
        value="",
        html_template=template,
        js_on_load=SCRIPT,
        elem_id=f"painter-{slot}",
        apply_default_css=False,
        padding=False,
    )


def _brushes(widget: Widget) -> list[dict[str, Any]]:
    """Name, colour and the byte that stands for it."""
    if isinstance(widget, Mask | ImageAndMask):
        return [{"name": "paint anew", "colour": "#ffffff", "id": 255}, {"name": "keep", "colour": "#000000", "id": 0}]
    if not isinstance(widget, LabelMapCanvas | Boxes):
        return []
    colours = (
        [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in widget.palette]
        if widget.palette
        else [HUES[index % len(HUES)] for index in range(len(widget.names))]
    )
    brushes: list[dict[str, Any]] = [
        {"name": name, "colour": colour, "id": index}
        for index, (name, colour) in enumerate(zip(widget.names, colours, strict=True))
    ]
    if isinstance(widget, LabelMapCanvas) and widget.ignore is not None:
        brushes.append({"name": "no class", "colour": "#00000000", "id": 255})
    return brushes


def _quoted(text: str) -> str:
    """Text in an attribute of a template: no brace, dollar, backtick or backslash is left for the template to read."""
    quoted = escape(text)
    for sign in "{}$`\\":
        quoted = quoted.replace(sign, f"&#{ord(sign)};")
    return quoted
