"""Trains a model of this package and writes its folder: `python plugins/models/make.py digits`.

The recipe `recipes/NAME.yaml` is run, or, with `--run DIR`, a run of it that has ended is taken. `made.json` says what made it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import click

import ldmkit
from ldmkit.evaluation import Results

HERE = Path(__file__).parent
PACKAGES = ("ldmkit", "torch", "numpy", "scikit-learn", "pillow")


@click.command()
@click.argument("name")
@click.option("--run", "run", metavar="DIR", help="A run of the recipe that has ended; default: train one.")
@click.option("--note", help="What else a reader should know of the run.")
def make(name: str, run: str | None, note: str | None) -> None:
    """Write ldmkit_models/NAME."""
    recipe = HERE / "recipes" / f"{name}.yaml"
    target = HERE / "ldmkit_models" / name
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(run) if run else ldmkit.run(str(recipe), out=Path(scratch) / name).path
        if json.loads((folder / "status.json").read_text("utf-8"))["state"] != "finished":
            raise click.UsageError(f"{folder} has not come to its end")
        model = ldmkit.load(folder / "model")
        if target.exists():
            shutil.rmtree(target)
        model.save(target, storage="float16")
        facts = _facts(recipe, target, Results.load(folder / "evaluation.json"))
        facts |= {"note": note} if note else {}
        (target / "made.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in target.iterdir())
    click.echo(f"{target}: {size / 1e6:.2f} MB")


def _facts(recipe: Path, target: Path, results: Results) -> dict[str, Any]:
    """What made the model, and its figures."""
    figures = {
        f"{figure.name}/{figure.slot}" if figure.slot else figure.name: figure.value for figure in results.figures
    }
    return {
        "recipe": recipe.name,
        "recipe_sha256": _digest(recipe),
        "weights_sha256": _digest(target / "model.safetensors"),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "sampling": dict(results.sampling),
        "images": results.n,
        "figures": {name: round(value, 6) for name, value in figures.items()},
    }


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    make()
