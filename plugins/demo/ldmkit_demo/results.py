"""What the page shows of one model: conditions beside images, the way there, the command that makes the same. Plain HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from ldmkit_demo.sampling import Frame

SHOWN = 160  # pixels: a smaller image is shown larger, pixel by pixel
COPY = (
    "navigator.clipboard.writeText(this.closest('.command').querySelector('code').innerText)"
    ".then(() => { this.textContent = 'copied' })"
)


@dataclass(frozen=True)
class Result:
    """One model's part of the page.

    Attributes:
        name: the run, as the person named it.
        command: what makes the same images; empty before anything was asked.
        files: those that the command names.
        first_seed: of the first image.
    """

    name: str
    frame: Frame
    command: str = ""
    files: tuple[Path, ...] = ()
    first_seed: int = 0

    def html(self) -> str:
        frame = self.frame
        parts = [f"<h2>{escape(self.name)}</h2>"]
        if frame.error:
            first, _, hint = frame.error.partition("\n")
            parts.append(f'<div class="error" role="alert"><b>{escape(first)}</b><p>{escape(hint.strip())}</p></div>')
            return _wrapped(parts, "failed")
        finished = frame.seconds is not None
        said = f"{frame.total} steps in {frame.seconds:.1f} s" if finished else f"step {frame.done} of {frame.total}"
        share = 100 * frame.done / max(1, frame.total)
        parts.append(
            f'<div class="way" role="progressbar" aria-label="sampling" aria-valuenow="{share:.0f}">'
            f'<i style="width:{share:.0f}%"></i></div><p class="said" role="status">{said}</p>'
        )
        parts += [f'<p class="note">{escape(note)}</p>' for note in frame.notes]
        parts.append(f'<div class="pair">{self._conditions()}{self._images()}</div>')
        if finished and self.command:
            parts.append(self._command())
        return _wrapped(parts, "finished" if finished else "under-way")

    def _conditions(self) -> str:
        """What the model was asked for, as it reads it."""
        asked = self.frame.asked
        if not asked:
            return '<dl class="asked"><dt>no condition</dt><dd>anything the model likes</dd></dl>'
        rows = "".join(
            f"<dt>{escape(slot)}</dt><dd>"
            + (_image(value, f"the condition {slot}") if isinstance(value, Image.Image) else _text(value))
            + "</dd>"
            for slot, value in asked.items()
        )
        return f'<dl class="asked">{rows}</dl>'

    def _images(self) -> str:
        final = self.frame.seconds is not None
        cells = []
        for number, image in enumerate(self.frame.images):
            seed = self.first_seed + number
            described = _image(image, f"image {number + 1}, seed {seed}" if final else f"image {number + 1} on its way")
            name = f"seed-{seed:05d}.png"
            cells.append(
                f'<a download="{name}" href="{_url(image)}" title="seed {seed}; a click saves it">{described}</a>'
                if final
                else f"<span>{described}</span>"
            )
        return f'<div class="images">{"".join(cells)}</div>'

    def _command(self) -> str:
        links = ", ".join(
            f'<a download="{escape(path.name)}" href="{_file(path)}">{escape(path.name)}</a>' for path in self.files
        )
        beside = f'<p class="said">Save {links} where you run it.</p>' if links else ""
        return (
            f'<div class="command"><p class="said">The same {"image" if len(self.frame.images) == 1 else "images"} '
            f'from the command line:</p><pre tabindex="0"><code>{escape(self.command)}</code></pre>'
            f'<button type="button" onclick="{escape(COPY)}">copy</button>{beside}</div>'
        )


def waiting(name: str, about: str) -> str:
    """A model that was not asked for anything yet."""
    return _wrapped([f"<h2>{escape(name)}</h2>", f'<p class="said">{escape(about)}</p>'], "waiting")


def _text(value: str) -> str:
    return f"<q>{escape(value)}</q>" if value.strip() else "<i>empty</i>"


def _wrapped(parts: Sequence[str], state: str) -> str:
    return f'<section class="result {state}">{"".join(parts)}</section>'


def _image(image: Image.Image, described: str) -> str:
    small = ' class="small"' if max(image.size) < SHOWN else ""
    return f'<img{small} src="{_url(image)}" alt="{escape(described)}" width="{image.width}" height="{image.height}">'


def _url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _file(path: Path) -> str:
    kind = "image/png" if path.suffix == ".png" else "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
