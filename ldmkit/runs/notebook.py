"""How a run shows itself in a notebook: its state, figures, curve and newest images."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldmkit.errors import LdmkitError

SHEET = "samples/latest.png"
STYLE = (
    "<style>.ldmkit-run svg{max-width:480px;display:block}.ldmkit-run svg path,.ldmkit-run svg line"
    "{fill:none;stroke:currentColor}.ldmkit-run svg text{fill:currentColor;font-size:10px}</style>"
)


def page(path: Path, status: Mapping[str, Any]) -> str:
    """HTML of the run in `path`. What is not there yet is left out."""
    from ldmkit.latent_diffusion.notebook import table

    facts = [(key, str(status[key])) for key in ("state", "stage", "step", "error") if status.get(key) is not None]
    parts = f"<b>{html.escape(str(path))}</b>{table([*facts, *_figures(path)])}{_curve(path)}{_images(path)}"
    return f'<div class="ldmkit-run">{STYLE}{parts}</div>'


def _figures(path: Path) -> list[tuple[str, str]]:
    from ldmkit.evaluation import Results

    try:
        found = Results.load(path / "evaluation.json").figures
    except (LdmkitError, OSError, ValueError):
        return []
    return [(f"{f.name}/{f.slot}" if f.slot else f.name, f"{f.value:.4g}") for f in found]


def _curve(path: Path) -> str:
    from ldmkit.evaluation.report.charts import line_chart, thinned
    from ldmkit.training.logging.log import METRICS, read

    curves: dict[str, list[tuple[float, float]]] = {}
    for line in read(path / METRICS):
        for name in ("loss", "validation"):
            if line["stage"] == "diffusion" and isinstance(line.get(name), int | float):
                curves.setdefault(name, []).append((line["step"], line[name]))
    drawn = {name: thinned(points) for name, points in curves.items() if len(points) > 1}
    return line_chart(drawn, title="diffusion") if drawn else ""


def _images(path: Path) -> str:
    from PIL import Image

    from ldmkit.latent_diffusion.sampled import data_url

    if not (path / SHEET).is_file():
        return ""
    with Image.open(path / SHEET) as sheet:
        return f'<img src="{data_url(sheet)}" alt="samples" style="max-width:100%">'
