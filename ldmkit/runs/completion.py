"""The end of a run: the model as it is loaded again, its evaluation, its pictures."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldmkit.assembly import build
from ldmkit.data import Dataset
from ldmkit.evaluation import Evaluation, Metric, Results, evaluate, new_folder, write_pictures
from ldmkit.evaluation.store import FOLDER as EVALUATIONS
from ldmkit.files import replacing
from ldmkit.interop.diffusers.autoencoder_folder import load_autoencoder, save_autoencoder
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.training.checkpointing.atomic_dir import discard
from ldmkit.training.checkpointing.state import TrainingState
from ldmkit.training.diffusion import trainable
from ldmkit.training.logging.console import Console
from ldmkit.training.stop import Stop

EVALUATED = 128  # samples that are judged, unless a metric's option `count` asks for more
MODEL, EVALUATION = "model", "evaluation.json"


def save_model(model: LatentDiffusion, state: TrainingState, folder: Path) -> None:
    """The model in the run's directory `folder`, as `ldmkit.load` reads it: average weights, and the raw ones beside them."""
    target, device = folder / MODEL, model.device
    raw = {name: p.detach().clone() for name, p in trainable(model).items()}
    if state.ema is not None:
        state.ema.copy_to_parameters()
    model.to("cpu").eval()
    if target.exists():
        discard(target)
    model.save(target, raw=raw if state.ema is not None else None)
    model.to(device)


def save_autoencoder_alone(model: LatentDiffusion, folder: Path) -> None:
    """The autoencoder in the run's directory `folder`, as `autoencoder.from` and `load_autoencoder` read it."""
    target = folder / MODEL
    if target.exists():
        discard(target)
    save_autoencoder(model.autoencoder, target)


def autoencoder_alone(recipe: Recipe, registry: Registry, folder: Path) -> LatentDiffusion:
    """The autoencoder of such a run, in a model whose denoiser nobody asks."""
    model = build(recipe, registry)
    model.autoencoder = load_autoencoder(folder / MODEL)
    return model.eval()


def evaluate_model(
    model: LatentDiffusion,
    data: tuple[Dataset, Dataset],
    *,
    recipe: Recipe,
    registry: Registry,
    folder: Path,
    console: Console,
    stop: Stop,
) -> Results:
    """The figures and the pictures of a run in `folder`; `data` is what was trained on and what was held out.

    They are kept in the next directory of ``evaluations/``, and ``evaluation.json`` is a copy of the newest.
    Raises Interrupted where a signal came: the next call begins the evaluation anew.
    """
    train, validation = data
    metrics, count = asked_metrics(recipe, registry)
    with console.progress("evaluation", total=max(len(metrics), 1)) as progress:
        evaluation = Evaluation(
            model,
            train,
            validation,
            n=max(count, recipe.sample.count),
            seed=recipe.sample.seed,
            alone=recipe.alone,
            progress=lambda what, done, total: progress.update(progress.done, f"{what} {done}/{total}"),
            check=lambda: stop.check("evaluating"),
        )
        results = evaluate(evaluation, metrics)
        progress.update(max(len(metrics), 1), " ")
    keep_older(folder)
    place = new_folder(folder)
    settings = {"weights": "ema", "step": trained_steps(recipe), "metrics": options_of(recipe)}
    results = keep(results, evaluation, place, run=folder, count=recipe.sample.count, settings=settings)
    with replacing(folder / EVALUATION) as temporary:
        shutil.copyfile(place / EVALUATION, temporary)
    return results


def keep_older(folder: Path) -> None:
    """A run of an older version has its evaluation in ``evaluation.json`` alone: that is kept with the others."""
    if (folder / EVALUATION).is_file() and not (folder / EVALUATIONS).is_dir():
        shutil.copyfile(folder / EVALUATION, new_folder(folder) / EVALUATION)


def keep(
    results: Results,
    evaluation: Evaluation,
    place: Path,
    *,
    count: int,
    settings: Mapping[str, Any],
    run: Path | None = None,
) -> Results:
    """Writes an evaluation and its sheets into the directory `place`; returns it as written there.

    Args:
        run: the directory that the sheets' names are relative to; default: `place`.
        count: rows on a sheet.
        settings: what the figures depend on besides the sampling.
    """
    pictures = write_pictures(evaluation, place, count=count, run=run or place)
    results = replace(results, pictures=pictures, settings=settings)
    results.save(place / EVALUATION)
    return results


def trained_steps(recipe: Recipe) -> int:
    """Of the last stage that is trained; 0 where a trained autoencoder is judged as it is."""
    own = recipe.autoencoder.train
    return recipe.train.steps if not recipe.alone else 0 if own is None else own.steps


def options_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Metric -> its options, of what the recipe evaluates."""
    return {entry.type: dict(entry.options) for entry in recipe.evaluate}


def asked_metrics(recipe: Recipe, registry: Registry) -> tuple[list[tuple[str, Metric]], int]:
    """The recipe's metrics, and how many samples they want."""
    metrics = [(entry.type, registry.metrics.create(entry.type, entry.options)) for entry in recipe.evaluate]
    if recipe.alone and not metrics:  # what else would an autoencoder alone be trained for
        metrics = [("reconstruction", registry.metrics.create("reconstruction", {}))]
    wanted = [int(entry.options.get("count") or 0) for entry in recipe.evaluate]
    return metrics, max(wanted, default=0) or (EVALUATED if metrics else 0)
