"""`ldmkit evaluate RUN`: measure a trained run again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldmkit.cli.shared import aside, echo_json, json_option, plugin_files, run_folder

if TYPE_CHECKING:
    from ldmkit.evaluation import Metric, Results
    from ldmkit.plugins import Registry
    from ldmkit.recipe import Recipe
    from ldmkit.training.logging.console import Console
    from ldmkit.training.stop import Stop


@click.command(name="evaluate")
@click.argument("run", metavar="RUN")
@click.option("-n", "--count", type=click.IntRange(min=2), help="How many samples; default: as many as the run's own.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Measure this instead of the recipe's.")
@click.option("--without", multiple=True, metavar="SLOT", help="Leave out a slot whose plugin is not here: it is null.")
@plugin_files
@json_option
def command(
    run: str,
    count: int | None,
    metrics: tuple[str, ...],
    without: tuple[str, ...],
    files: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure a trained run again on its held-out data; writes evaluation.json, the pictures and report.html."""
    folder = run_folder(run)

    from ldmkit import plugins
    from ldmkit.recipe import load
    from ldmkit.runs.directory import RECIPE, RunDirectory, read_status
    from ldmkit.training.logging.console import Console
    from ldmkit.training.stop import Stop

    recorded = [file for file in read_status(folder).get("plugin_files", ()) if Path(file).is_file()]
    registry = plugins.load(files=files or recorded)
    overrides = [f"evaluate=[{', '.join(metrics)}]"] if metrics else []
    recipe = _without(load(folder / RECIPE, overrides), without).validate_components(registry)
    with RunDirectory(folder), Stop() as stop:
        results = _evaluate(folder, recipe, registry, count, without, stop, Console(enabled=not as_json))
    if as_json:
        echo_json(results.to_json())
        return
    for line in results.lines():
        click.echo(line)
    for name, reason in results.unavailable.items():
        click.echo(f"{name}: not measured: {reason}")
    click.echo(f"\n{folder / 'report.html'}")


def _without(recipe: Recipe, slots: tuple[str, ...]) -> Recipe:
    """The recipe's data and metrics, without slots whose plugins may not be here. What they are guided by is the model's."""
    if not slots:
        return recipe
    from ldmkit.errors import UsageError
    from ldmkit.recipe import Recipe
    from ldmkit.recipe.strict_yaml import Document

    there = recipe.resolved(redact=False)
    if unknown := [slot for slot in slots if slot not in there["conditioners"]]:
        raise UsageError(
            f"no slot is called {', '.join(unknown)}",
            hint=f"the slots of this run are {', '.join(there['conditioners']) or 'none'}",
        )
    kept = {name: slot for name, slot in there["conditioners"].items() if name not in slots}
    sample = {key: value for key, value in there["sample"].items() if key != "guidance"}
    value = {**there, "conditioners": kept, "sample": sample, "dropout": None}
    return Recipe.parse(Document(value, recipe.document.marks), source=recipe.source)


def _evaluate(
    folder: Path,
    recipe: Recipe,
    registry: Registry,
    count: int | None,
    without: tuple[str, ...],
    stop: Stop,
    console: Console,
) -> Results:
    from ldmkit.assembly import datasets
    from ldmkit.evaluation import Evaluation, Results, evaluate, write_pictures, write_report
    from ldmkit.runs.loading import load

    stored = folder / "evaluation.json"
    before = Results.load(stored).n if stored.is_file() else recipe.sample.count
    train, validation = datasets(recipe, registry)
    with console.progress("evaluation", total=len(recipe.evaluate)) as progress:
        evaluation = Evaluation(
            load(folder, without=without, registry=registry, note=aside),
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
    left_out = {f"slot {slot}": "the model was loaded without it: it is null in every picture" for slot in without}
    results = replace(results, pictures=tuple(pictures), unavailable={**results.unavailable, **left_out})
    results.save(stored)
    write_report(folder)
    return results


def _metrics(recipe: Recipe, registry: Registry) -> list[tuple[str, Metric]]:
    return [(entry.type, registry.metrics.create(entry.type, entry.options)) for entry in recipe.evaluate]
