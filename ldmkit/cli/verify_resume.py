"""`ldmkit verify-resume RECIPE`: an interrupted run ends with the same bits, proved on a person's own recipe."""

from __future__ import annotations

import click

from ldmkit.cli.shared import echo_json, echo_table, json_option, load_recipe, recipe_argument

WIDTH = 12  # letters of a hash that are shown


@click.command(name="verify-resume")
@recipe_argument
@click.option("--steps", type=click.IntRange(min=2), default=6, show_default=True, help="Steps of each stage.")
@click.option(
    "--at",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Of these, how many before the run is killed.",
)
@json_option
def command(
    recipe: str, overrides: tuple[str, ...], files: tuple[str, ...], steps: int, at: int, as_json: bool
) -> None:
    """Prove on your own recipe that an interrupted run ends with the same bits as an uninterrupted one.

    Each stage is trained for --steps steps in one go; then again, killed after --at of them without warning, and continued. All
    that training keeps is compared: weights, averages, optimizers, counters. Runs in a temporary directory; exits with 1 where
    anything differs.
    """
    complete, _ = load_recipe(recipe, overrides, files)

    from ldmkit.runs.resume_check import verify_resume
    from ldmkit.training.logging.console import Console

    found = verify_resume(complete, steps, at, plugin_files=files, console=Console(enabled=not as_json))
    if as_json:
        echo_json(found.to_json())
    else:
        rows = [
            (name, one[:WIDTH], other[:WIDTH], "same" if one == other else "DIFFERS")
            for name, (one, other) in found.files.items()
        ]
        echo_table(("state", "in one go", "interrupted", ""), rows)
        click.echo("")
        if found.same:
            click.echo(f"the same bits after {steps} steps of each stage, killed after {at}")
        else:
            click.echo(f"different bits: {found.first}", err=True)
    if not found.same:
        raise click.exceptions.Exit(1)
