"""`ldmkit evaluate RUN`: measure a trained run again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ldmkit.cli.shared import echo_json, json_option, plugin_files, run_folder

if TYPE_CHECKING:
    from pathlib import Path

    from ldmkit.evaluation import Metric, Results
    from ldmkit.plugins import Registry
    from ldmkit.recipe import Recipe
    from ldmkit.training.console import Console
    from ldmkit.training.stop import Stop


@click.command(name="evaluate")
@click.argument("run", metavar="RUN")
@click.option("-n", "--count", type=click.IntRange(min=2), help="How many samples; default: as many as the run's own.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Measure this instead of the recipe's.")
@plugin_files
@json_option
def command(run: str, count: int | None, metrics: tuple[str, ...], files: tuple[str, ...], as_json: bool) -> None:
    """Measure a trained run again on its held-out data; writes evaluation.json, the pictures and report.html."""
    folder = run_folder(run)

    from ldmkit import plugins
    from ldmkit.recipe import load
    from ldmkit.rundir import RECIPE, RunDirectory
    from ldmkit.training.console import Console
    from ldmkit.training.stop import Stop

    registry = plugins.load(files=files)
    overrides = [f"evaluate=[{', '.join(metrics)}]"] if metrics else []
    recipe = load(folder / RECIPE, overrides, registry=registry)
    with RunDirectory(folder), Stop() as stop:
        results = _evaluate(folder, recipe, registry, count, stop, Console(enabled=not as_json))
    if as_json:
        echo_json(results.to_json())
        return
    for line in results.lines():
        click.echo(line)
    for name, reason in results.unavailable.items():
        click.echo(f"{name}: not measured: {reason}")
    click.echo(f"\n{folder / 'report.html'}")


def _evaluate(
    folder: Path, recipe: Recipe, registry: Registry, count: int | None, stop: Stop, console: Console
) -> Results:
    from ldmkit.build import datasets, load
    from ldmkit.evaluation import Evaluation, Results, evaluate, write_pictures, write_report

    stored = folder / "evaluation.json"
    before = Results.load(stored).n if stored.is_file() else recipe.sample.count
    train, validation = datasets(recipe, registry)
    with console.progress("evaluation", total=len(recipe.evaluate)) as progress:
        evaluation = Evaluation(
            load(folder, registry=registry),
            train,
            validation,
            n=count or before,
            seed=recipe.sample.seed,
            progress=lambda what, done, total: progress.update(progress.done, f"{what} {done}/{total}"),
            check=lambda: stop.check("evaluating"),
        )
        results = evaluate(evaluation, _metrics(recipe, registry))
        progress.update(len(recipe.evaluate), " ")
    pictures = write_pictures(evaluation, folder / "samples", count=recipe.sample.count)
    results = replace(results, pictures=tuple(pictures))
    results.save(stored)
    write_report(folder)
    return results


def _metrics(recipe: Recipe, registry: Registry) -> list[tuple[str, Metric]]:
    return [(entry.type, registry.metrics.create(entry.type, entry.options)) for entry in recipe.evaluate]
