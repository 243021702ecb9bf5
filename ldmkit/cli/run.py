"""`ldmkit run RECIPE`: train, sample, evaluate, report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldmkit.cli.shared import aside, recipe_argument

if TYPE_CHECKING:
    from ldmkit.plugins import Registry
    from ldmkit.recipe import Recipe

QUICK_STEPS = 20  # of each stage
QUICK_COUNT = 8  # images drawn, and judged where a metric says a number


@click.command(name="run")
@recipe_argument
@click.option("--out", metavar="DIR", help="The run directory; default: runs/<recipe name>.")
@click.option(
    "--fresh", is_flag=True, help="Start again from step 0; the old directory is renamed, nothing is deleted."
)
@click.option("--accept-new-data", is_flag=True, help="Continue although the data changed since the run began.")
@click.option("--quick", is_flag=True, help="The whole path in 20 steps a stage, in runs/<recipe name>-quick.")
@click.option("--dry-run", is_flag=True, help="Check recipe, data and directory, show what would be done and stop.")
def command(
    recipe: str,
    overrides: tuple[str, ...],
    files: tuple[str, ...],
    out: str | None,
    fresh: bool,
    accept_new_data: bool,
    quick: bool,
    dry_run: bool,
) -> None:
    """Train a recipe, sample from it, evaluate and report. The same command again continues where it stopped.

    RECIPE is a file, or the name of a bundled recipe such as superres.
    """
    from importlib.metadata import version

    from ldmkit import plugins
    from ldmkit.errors import LdmkitError
    from ldmkit.recipe import load

    registry = plugins.load(files=files)
    try:
        core = load(recipe, overrides)
        if quick:  # what the user says wins
            overrides = (*shortened(core), *overrides)
            core = load(recipe, overrides)
        core.require_components(registry)
    except LdmkitError:
        load(recipe, overrides, registry=registry)  # imports the components, to report what is wrong with them too
        raise
    folder = Path(out).expanduser() if out else Path("runs") / (core.name + "-quick" * quick)
    if os.environ.get("RANK", "0") == "0":
        click.echo(f"ldmkit {version('ldmkit')} · {core.name} ({core.source}) · {folder} · loading torch...")
    complete = core.validate_components(registry)
    if dry_run:
        _say_plan(complete, registry, folder, fresh)
        return

    from ldmkit.runs.run import run

    run(complete, out=folder, fresh=fresh, accept_new_data=accept_new_data, registry=registry)


def shortened(recipe: Recipe) -> tuple[str, ...]:
    """`--set` values under which every stage and every metric of a recipe runs, for a moment each."""
    found: dict[str, object] = {"sample.steps": min(recipe.sample.steps, 10), "sample.count": QUICK_COUNT}
    trained = {"autoencoder.train": recipe.autoencoder.train, "train": None if recipe.alone else recipe.train}
    for key, stage in trained.items():
        if stage is not None:
            found |= {
                f"{key}.steps": min(stage.steps, QUICK_STEPS),
                f"{key}.warmup": min(stage.warmup, QUICK_STEPS // 2),
            }
            found[f"{key}.batch"] = min(stage.batch, QUICK_COUNT)
    adversarial = recipe.resolved()["autoencoder"].get("loss", {}).get("adversarial")
    if recipe.autoencoder.train is not None and adversarial is not None:
        found["autoencoder.loss.adversarial.start"] = min(adversarial["start"], QUICK_STEPS // 2)
    for number, metric in enumerate(recipe.evaluate):
        if "count" in metric.options:
            found[f"evaluate.{number}.count"] = QUICK_COUNT
    return tuple(f"{key}={value}" for key, value in found.items())


def _say_plan(recipe: Recipe, registry: Registry, folder: Path, fresh: bool) -> None:
    """What a run would do, from recipe, data and directory; nothing is written."""
    from ldmkit.assembly import check_fields
    from ldmkit.runs.directory import read_status

    if why := check_fields(recipe, registry):
        aside(f"not checked: whether the data have the fields that the slots read: {why}")
    own = recipe.autoencoder.train
    if own is not None:
        click.echo(f"would train the autoencoder: {own.steps} steps of {own.batch}")
    if not recipe.alone:
        slots = ", ".join(f"{slot} ({options.type})" for slot, options in recipe.conditioners.items()) or "no condition"
        click.echo(f"would train the diffusion model: {recipe.train.steps} steps of {recipe.train.batch}; {slots}")
    metrics = ", ".join(metric.type for metric in recipe.evaluate) or "nothing"
    click.echo(f"would evaluate: {metrics}")
    state = read_status(folder).get("state") if folder.is_dir() else None
    if state is None:
        click.echo(f"would write {folder}")
    elif fresh:
        click.echo(f"would rename {folder}, whose run is {state}, and begin anew")
    else:
        click.echo(f"would continue {folder}, whose run is {state}")
