"""Everything a report needs, read from a run directory and from nowhere else. Loads no torch."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from ldmkit.errors import CheckpointError, DataError
from ldmkit.evaluation.results import Picture, Results
from ldmkit.evaluation.store import Kept, combined, kept

Curve = list[tuple[float, float]]  # (step, value)

MOST_PICTURES = 8
HEAVY = 300_000  # bytes; a heavier PNG is embedded as WebP
WIDEST = 1600  # pixels


@dataclass(frozen=True)
class Record:
    """A run, as its directory tells it. What is not there is empty."""

    path: Path
    name: str
    recipe_text: str
    recipe: Mapping[str, Any]
    status: Mapping[str, Any]
    plan: list[Mapping[str, Any]]
    versions: Mapping[str, Any]
    curves: Mapping[str, Mapping[str, Curve]]  # stage -> name -> curve
    alarms: list[str]
    results: Results | None
    pictures: list[tuple[Picture, str]] = field(default_factory=list)  # with its data URI
    with_host: bool = False  # whether the page names the machine
    evaluations: list[Kept] = field(default_factory=list)  # all that were kept, the oldest first


def read(path: Path) -> Record:
    """Reads ``recipe.resolved.yaml`` and, where they are, ``status.json``, ``plan.json``, ``versions.json``, ``metrics.jsonl``,
    ``evaluation.json``, ``evaluations/*`` and ``samples/*.png``.

    Raises `CheckpointError` where `path` is no run directory. Damaged files other than the recipe count as absent; that they are
    damaged is among the alarms.
    """
    recipe_file = path / "recipe.resolved.yaml"
    if not recipe_file.is_file():
        raise CheckpointError(
            "there is no recipe.resolved.yaml", hint="name a run directory, such as runs/NAME", where=str(path)
        )
    text = recipe_file.read_text(encoding="utf-8", errors="replace")
    recipe = _mapping(yaml.safe_load(text))
    damaged: list[str] = []
    status = _mapping(_json(path / "status.json", damaged))
    curves, alarms = _metrics(path / "metrics.jsonl")
    evaluations = kept(path, damaged)
    results = _results(path / "evaluation.json", damaged)
    if results is not None:
        results = combined(results, [each.results for each in evaluations])
    return Record(
        path=path,
        name=str(recipe.get("name") or path.name),
        recipe_text=text,
        recipe=recipe,
        status=status,
        plan=_rows(_json(path / "plan.json", damaged) or status.get("plan")),
        versions=_mapping(_json(path / "versions.json", damaged) or status.get("versions")),
        curves=curves,
        alarms=[*damaged, *map(str, status.get("alarms") or ()), *alarms],
        results=results,
        pictures=_pictures(path, results),
        evaluations=evaluations,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rows(value: Any) -> list[Mapping[str, Any]]:
    """`plan.json`: a list of mappings, one a part of the model, or a mapping that holds it as ``parts``."""
    parts = value.get("parts") if isinstance(value, Mapping) else value
    return [row for row in parts if isinstance(row, Mapping)] if isinstance(parts, list) else []


def _json(path: Path, damaged: list[str]) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        damaged.append(f"{path.name} cannot be read: {error}")
        return None


def _results(path: Path, damaged: list[str]) -> Results | None:
    if not path.is_file():
        return None
    try:
        return Results.load(path)
    except (DataError, OSError) as error:
        damaged.append(f"{path.name} cannot be read: {error}")
        return None


def _metrics(path: Path) -> tuple[dict[str, dict[str, Curve]], list[str]]:
    """The curves of each stage, and what lines with an ``alarm`` say. A torn line (a killed run) is passed over."""
    curves: dict[str, dict[str, Curve]] = {}
    alarms: list[str] = []
    if not path.is_file():
        return curves, alarms
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if not isinstance(line, dict) or not isinstance(line.get("step"), int | float):
            continue
        stage = curves.setdefault(str(line.get("stage", "")), {})
        if isinstance(line.get("alarm"), str):
            alarms.append(f"{line.get('stage', '')} step {line['step']}: {line['alarm']}")
        for name, value in line.items():
            if (
                name != "step"
                and isinstance(value, int | float)
                and not isinstance(value, bool)
                and math.isfinite(value)
            ):
                stage.setdefault(name, []).append((float(line["step"]), float(value)))
    return curves, list(dict.fromkeys(alarms))


def _pictures(path: Path, results: Results | None) -> list[tuple[Picture, str]]:
    """The evaluation's sheets first, then the others in ``samples``; the training's `latest.png` where there is nothing else."""
    named = list(results.pictures) if results else []
    known = {picture.file for picture in named}
    for file in sorted((path / "samples").glob("*.png")):
        relative = f"samples/{file.name}"
        if relative not in known and file.stem != "latest":
            named.append(Picture(relative, file.stem.replace("-", " ").replace("_", " ").capitalize()))
    if not named and (path / "samples" / "latest.png").is_file():
        named.append(Picture("samples/latest.png", "Latest samples"))
    found = [(picture, _embedded(path, picture.file)) for picture in named[:MOST_PICTURES]]
    return [(picture, uri) for picture, uri in found if uri is not None]


def _embedded(path: Path, file: str) -> str | None:
    """A picture of the run as a data URI; None where it is not there, or not in the run."""
    place = (path / file).resolve()
    if not place.is_relative_to(path.resolve()) or not place.is_file():
        return None
    data, kind = place.read_bytes(), "png"
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            image.load()
            if len(data) > HEAVY or image.format != "PNG":
                data, kind = _lighter(image), "webp"
    except (OSError, SyntaxError, ValueError):
        return None
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _lighter(image: Image.Image) -> bytes:
    colour = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    if colour.width > WIDEST:
        colour = colour.resize((WIDEST, round(colour.height * WIDEST / colour.width)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    colour.save(out, format="WEBP", quality=88)
    return out.getvalue()
