"""`ldmkit sample RUN --conditions FILE` and `--held-out N`: an image for each row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmkit.cli.shared import run_folder

if TYPE_CHECKING:
    from ldmkit.evaluation import Evaluation
    from ldmkit.latent_diffusion import LatentDiffusion


def sampled_rows(
    run: str,
    model: LatentDiffusion,
    rows: tuple[Path | None, int | None],
    folder: Path,
    asked: dict[str, Any],
    seed: int,
    batch: int,
    files: Sequence[str],
) -> dict[str, Any]:
    """Images in `folder`, and what is told of them; row i has seed SEED + i.

    Args:
        rows: the file, or how many of the held-out samples.
        asked: settings of sampling, the sampler's own in `options`.
        files: of plugins.
    """
    from ldmkit.evaluation.listed_samples import read_conditions, write_listed

    listed, held_out = rows
    settings = {**asked, "run": run, "seed": seed, "list": str(listed) if listed else f"held-out {held_out}"}
    found: _Listed | _HeldOut
    if listed is not None:
        values = read_conditions(listed, tuple(model.conditioners))
        settings["rows"] = hashlib.sha256(json.dumps(values).encode()).hexdigest()
        found = _Listed(model, values, asked, seed)
    else:
        found = _HeldOut(run, model, held_out or 1, asked, seed, files)

    def progress(done: int, total: int, speed: float) -> None:
        click.echo(f"{done}/{total}  {speed:.2g} images/s", err=True)

    more: Any = {"settings": settings, "conditions": found.conditions, "batch": batch, "progress": progress}
    made = write_listed(folder, found.total, found.make, **more)
    return {"path": str(folder), "made": made, "total": found.total, "seed": seed}


class _Listed:
    """The rows of a file."""

    def __init__(self, model: LatentDiffusion, values: list[dict[str, Any]], asked: dict[str, Any], seed: int) -> None:
        self.model, self.values, self.seed, self.total = model, values, seed, len(values)
        self.settings = {key: value for key, value in asked.items() if key != "options"} | (asked.get("options") or {})

    def make(self, rows: range) -> Sequence[Any]:
        images: Any = self.model.sample(
            self.values[rows.start : rows.stop], seed=self.seed + rows.start, **self.settings
        )
        return list(images)

    def conditions(self, row: int) -> dict[str, Any]:
        return {"seed": self.seed + row, **self.values[row]}


class _HeldOut:
    """The rows of an evaluation, sampled as `ldmkit evaluate` does."""

    def __init__(
        self, run: str, model: LatentDiffusion, count: int, asked: dict[str, Any], seed: int, files: Sequence[str]
    ) -> None:
        self.more = {name: asked[name] for name in ("guidance_options", "negative") if name in asked}
        settings = {name: value for name, value in asked.items() if name not in self.more}
        self.evaluation = _evaluation(run, model, files, n=count, seed=seed, **settings)
        self.seed, self.total = seed, count

    def make(self, rows: range) -> Sequence[Any]:
        from ldmkit.latent_diffusion import to_pil

        return to_pil(self.evaluation.sampled(slice(rows.start, rows.stop), **self.more))

    def conditions(self, row: int) -> dict[str, Any]:
        from ldmkit.evaluation.pictures import preview_words

        words = preview_words(self.evaluation, row)
        return {"seed": self.seed + row, "item": self.evaluation.items[row], "conditions": words}


def _evaluation(run: str, model: LatentDiffusion, files: Sequence[str], **settings: Any) -> Evaluation:
    from ldmkit import plugins
    from ldmkit.assembly import datasets
    from ldmkit.evaluation import Evaluation
    from ldmkit.recipe import load
    from ldmkit.runs.directory import RECIPE, read_status

    folder = run_folder(run)
    recorded = [file for file in read_status(folder).get("plugin_files", ()) if Path(file).is_file()]
    registry = plugins.load(files=files or recorded)
    train, validation = datasets(load(folder / RECIPE, registry=registry), registry)
    return Evaluation(model, train, validation, **settings)
