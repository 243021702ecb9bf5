"""The end of a run: the model as it is loaded again, its evaluation, its pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ldmkit.data import Dataset
from ldmkit.evaluation import Evaluation, Metric, Results, evaluate, write_pictures
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

    Raises Interrupted where a signal came: the next call begins the evaluation anew.
    """
    train, validation = data
    metrics, count = _metrics(recipe, registry)
    with console.progress("evaluation", total=max(len(metrics), 1)) as progress:
        evaluation = Evaluation(
            model,
            train,
            validation,
            n=max(count, recipe.sample.count),
            seed=recipe.sample.seed,
            progress=lambda what, done, total: progress.update(progress.done, f"{what} {done}/{total}"),
            check=lambda: stop.check("evaluating"),
        )
        results = evaluate(evaluation, metrics)
        progress.update(max(len(metrics), 1), " ")
    pictures = write_pictures(evaluation, folder / "samples", count=recipe.sample.count)
    results = replace(results, pictures=tuple(pictures))
    results.save(folder / EVALUATION)
    return results


def _metrics(recipe: Recipe, registry: Registry) -> tuple[list[tuple[str, Metric]], int]:
    """The recipe's metrics, and how many samples they want."""
    metrics = [(entry.type, registry.metrics.create(entry.type, entry.options)) for entry in recipe.evaluate]
    wanted = [int(entry.options.get("count") or 0) for entry in recipe.evaluate]
    return metrics, max(wanted, default=0) or (EVALUATED if metrics else 0)
