"""`ldmkit evaluate RUN`: measure a trained run again. It adds to what was measured, and overwrites nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ldmkit.cli.shared import (
    aside,
    checkpoint_of,
    echo_json,
    guidance_of,
    json_option,
    plugin_files,
    run_folder,
    values,
)

if TYPE_CHECKING:
    from ldmkit.evaluation import Evaluation, Metric, Results
    from ldmkit.plugins import Registry
    from ldmkit.recipe import Recipe
    from ldmkit.training.logging.console import Console
    from ldmkit.training.stop import Stop


@dataclass(frozen=True)
class Asked:
    """What was asked for on the command line."""

    count: int | None
    seed: int | None
    sampling: dict[str, Any]  # of `Evaluation`: sampler, steps, guidance, options
    weights: Literal["ema", "raw"]
    checkpoint: int | Literal["newest", "best"] | None
    device: str
    without: tuple[str, ...]
    out: Path | None
    sweep: tuple[str, list[Any]] | None


@click.command(name="evaluate")
@click.argument("run", metavar="RUN")
@click.option("-n", "--count", type=click.IntRange(min=2), help="How many samples; default: as many as the run's own.")
@click.option(
    "--metric", "metrics", multiple=True, metavar="NAME", help="Instead of the recipe's; '{type: NAME, option: 1}' too."
)
@click.option(
    "--reference", metavar="DIR|STATS", help="Images, or an .npz of statistics, that Frechet distances compare with."
)
@click.option("--sampler", help="Its name; `ldmkit plugins list` shows them.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the sampler.")
@click.option("--guidance", multiple=True, metavar="SCALE", help="A number, SLOT=SCALE, or an expression.")
@click.option("--eta", type=float, help="How much fresh noise a step of the sampler adds.")
@click.option("-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="Another option of the sampler.")
@click.option("--seed", type=click.IntRange(min=0), help="Sample i has seed SEED + i; default: the recipe's.")
@click.option(
    "--sweep", metavar="NAME=A,B,C", help="Measure at each value: guidance=1,1.5,2,3; steps=..., or an option."
)
@click.option("--weights", type=click.Choice(["ema", "raw"]), default="ema", show_default=True, help="Which weights.")
@click.option(
    "--checkpoint", metavar="WHICH", help="Which of the run's checkpoints: newest, best (lowest validation), or a step."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda ...")
@click.option("--without", multiple=True, metavar="SLOT", help="Leave out a slot whose plugin is not here: it is null.")
@click.option("--out", metavar="DIR", help="A new directory for the figures and sheets; default: in RUN/evaluations.")
@plugin_files
@json_option
def command(
    run: str,
    count: int | None,
    metrics: tuple[str, ...],
    reference: str | None,
    sampler: str | None,
    steps: int | None,
    guidance: tuple[str, ...],
    eta: float | None,
    options: tuple[str, ...],
    seed: int | None,
    sweep: str | None,
    weights: str,
    checkpoint: str | None,
    device: str,
    without: tuple[str, ...],
    out: str | None,
    files: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure a trained run again on its held-out data.

    Figures and sheets are kept in the next directory of RUN/evaluations, with the settings they were made with; nothing that was
    measured before is overwritten. report.html then shows them beside the others.
    """
    own = values(options, "--option") | ({} if eta is None else {"eta": eta})
    sampling = {"sampler": sampler, "steps": steps, "guidance": guidance_of(guidance), "options": own or None}
    asked = Asked(
        count=count,
        seed=seed,
        sampling=sampling,
        weights="raw" if weights == "raw" else "ema",
        checkpoint=checkpoint_of(checkpoint),
        device=device,
        without=without,
        out=Path(out).expanduser() if out else None,
        sweep=sweep_of(sweep),
    )
    folder = run_folder(run)
    if asked.out is not None:
        _check_new(asked.out)

    from ldmkit import plugins
    from ldmkit.evaluation import conclusion, write_report
    from ldmkit.recipe import load
    from ldmkit.runs.directory import RECIPE, RunDirectory, read_status
    from ldmkit.training.logging.console import Console
    from ldmkit.training.stop import Stop

    recorded = [file for file in read_status(folder).get("plugin_files", ()) if Path(file).is_file()]
    registry = plugins.load(files=files or recorded)
    recipe = _chosen(load(folder / RECIPE), metrics)
    recipe = _without(recipe, without).validate_components(registry)
    if reference is not None:
        recipe = _against(recipe, registry, reference)
    with RunDirectory(folder), Stop() as stop:
        found = _evaluate(folder, recipe, registry, asked, stop, Console(enabled=not as_json))
        if asked.out is None:
            write_report(folder)
    if as_json:
        told = [{**results.to_json(), "path": str(place)} for place, results in found]
        echo_json(told[0] if asked.sweep is None else told)
        return
    for place, results in found:
        if asked.sweep is not None:
            click.echo(f"\n{asked.sweep[0]} = {results.settings['sweep']['value']}")
        for line in results.lines():
            click.echo(line)
        if said := conclusion(results):
            click.echo(said)
        click.echo(f"kept in {place}")
    if asked.out is None:
        click.echo(f"\n{folder / 'report.html'}")


def sweep_of(text: str | None) -> tuple[str, list[Any]] | None:
    """``guidance=1,1.5,2`` -> a name and at least two values."""
    if text is None:
        return None
    from ldmkit.recipe.loading import override_value

    name, _, listed = text.partition("=")
    found = [override_value(part, f"--sweep {text}") for part in listed.split(",") if part.strip()]
    if not name.strip() or len(found) < 2:
        raise click.UsageError(f"--sweep is {text!r}; write --sweep name=value,value, such as guidance=1,1.5,2,3")
    return name.strip(), found


def _check_new(folder: Path) -> None:
    from ldmkit.errors import UsageError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} already exists and is not empty", hint="choose another place: --out DIR")


def _chosen(recipe: Recipe, metrics: Sequence[str]) -> Recipe:
    """The recipe with other metrics; one that it has already keeps its options."""
    if not metrics:
        return recipe
    from ldmkit.recipe.loading import override_value

    there = {entry["type"]: entry for entry in recipe.resolved(redact=False)["evaluate"]}
    asked = [override_value(text, f"--metric {text}") for text in metrics]
    return recipe.updated({"evaluate": [there.get(one, one) if isinstance(one, str) else one for one in asked]})


def _against(recipe: Recipe, registry: Registry, reference: str) -> Recipe:
    """The recipe with a reference for those of its metrics that take one."""
    from ldmkit.errors import UsageError

    entries = recipe.resolved(redact=False)["evaluate"]
    taking = [entry for entry in entries if "reference" in registry.metrics.options(entry["type"]).names()]
    if not taking:
        raise UsageError("no metric here takes a reference", hint="--metric fid, --metric frechet")
    for entry in taking:
        entry["reference"] = reference
    return recipe.updated({"evaluate": entries}).validate_components(registry)


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
    folder: Path, recipe: Recipe, registry: Registry, asked: Asked, stop: Stop, console: Console
) -> list[tuple[Path, Results]]:
    """What was measured, one a value of the sweep, each with the directory it is kept in."""
    from ldmkit.assembly import datasets
    from ldmkit.evaluation import Evaluation, Results
    from ldmkit.runs.completion import asked_metrics, autoencoder_alone
    from ldmkit.runs.loading import load
    from ldmkit.training.runtime import resolve

    stored = folder / "evaluation.json"
    before = Results.load(stored).n if stored.is_file() else recipe.sample.count
    train, validation = datasets(recipe, registry)
    if recipe.alone:
        model = autoencoder_alone(recipe, registry, folder)
    else:
        which: Any = {"checkpoint": asked.checkpoint, "without": asked.without}
        model = load(folder, asked.weights, **which, registry=registry, note=aside)
    evaluation = Evaluation(
        model.to(resolve(device=asked.device).device),
        train,
        validation,
        n=asked.count or before,
        seed=recipe.sample.seed if asked.seed is None else asked.seed,
        alone=recipe.alone,
        check=lambda: stop.check("evaluating"),
        **asked.sampling,
    )
    metrics, _ = asked_metrics(recipe, registry)
    return [_measured(folder, recipe, one, metrics, asked, sweep, console) for one, sweep in _swept(evaluation, asked)]


def _swept(evaluation: Evaluation, asked: Asked) -> Iterator[tuple[Evaluation, dict[str, Any] | None]]:
    """An evaluation for each value of the sweep, beside what is told of it."""
    if asked.sweep is None:
        yield evaluation, None
        return
    from ldmkit.runs.directory import now

    name, listed = asked.sweep
    began = now()
    for value in listed:
        if name in ("sampler", "steps", "guidance"):
            changes = {name: value}
        else:
            changes = {"options": {**(evaluation.options or {}), name: value}}
        evaluation = evaluation.sampled_otherwise(
            **changes
        )  # of the one before: what that computed is not computed again
        yield evaluation, {"over": name, "value": value, "began": began}


def _measured(
    folder: Path,
    recipe: Recipe,
    evaluation: Evaluation,
    metrics: list[tuple[str, Metric]],
    asked: Asked,
    sweep: dict[str, Any] | None,
    console: Console,
) -> tuple[Path, Results]:
    from ldmkit.evaluation import evaluate, new_folder
    from ldmkit.runs.completion import keep, options_of

    if sweep is not None:
        metrics = [(name, metric) for name, metric in metrics if metric.asks == "samples"]
    with console.progress("evaluation", total=len(metrics)) as progress:
        evaluation.progress = lambda what, done, total: progress.update(progress.done, f"{what} {done}/{total}")
        results = evaluate(evaluation, metrics)
        progress.update(len(metrics), " ")
    absent = {f"slot {slot}": "the model was loaded without it: it is null in every picture" for slot in asked.without}
    results = replace(results, unavailable={**results.unavailable, **absent})
    settings = _settings(folder, recipe, asked, sweep, options_of(recipe))
    if asked.out is None:
        place, run = new_folder(folder), folder
    else:
        place = run = asked.out if sweep is None else asked.out / f"{sweep['over']}-{sweep['value']}"
        place.mkdir(parents=True, exist_ok=True)
    return place, keep(results, evaluation, place, run=run, count=recipe.sample.count, settings=settings)


def _settings(
    folder: Path, recipe: Recipe, asked: Asked, sweep: dict[str, Any] | None, metrics: dict[str, Any]
) -> dict[str, Any]:
    from ldmkit.runs.completion import trained_steps
    from ldmkit.runs.directory import read_status

    step = asked.checkpoint or read_status(folder).get("done") or trained_steps(recipe)
    found = {"weights": asked.weights, "step": step, "metrics": metrics}
    if asked.without:
        found["without"] = list(asked.without)
    return found if sweep is None else {**found, "sweep": sweep}
