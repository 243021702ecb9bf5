"""`ldmkit run RECIPE`: train, sample, evaluate, report."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ldmkit.cli.shared import recipe_argument


@click.command(name="run")
@recipe_argument
@click.option("--out", metavar="DIR", help="The run directory; default: runs/<recipe name>.")
@click.option("--fresh", is_flag=True, help="Start anew; the old directory is renamed, nothing is deleted.")
@click.option("--accept-new-data", is_flag=True, help="Go on although the data changed since the run began.")
def command(
    recipe: str,
    overrides: tuple[str, ...],
    files: tuple[str, ...],
    out: str | None,
    fresh: bool,
    accept_new_data: bool,
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
        core.require_components(registry)
    except LdmkitError:
        load(recipe, overrides, registry=registry)  # imports the components, to report what is wrong with them too
        raise
    folder = Path(out).expanduser() if out else Path("runs") / core.name
    if os.environ.get("RANK", "0") == "0":
        click.echo(f"ldmkit {version('ldmkit')} · {core.name} ({core.source}) · {folder} · loading torch...")
    complete = core.validate_components(registry)

    from ldmkit.runs.run import run

    run(complete, out=folder, fresh=fresh, accept_new_data=accept_new_data, registry=registry)
