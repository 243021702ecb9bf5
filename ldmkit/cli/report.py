"""`ldmkit report RUN`: write the report again."""

from __future__ import annotations

import click

from ldmkit.cli.shared import echo_json, json_option, run_folder


@click.command(name="report")
@click.argument("run", metavar="RUN")
@json_option
def command(run: str, as_json: bool) -> None:
    """Write report.html of a run again, from what its directory holds."""
    folder = run_folder(run)

    from ldmkit.evaluation import write_report

    path = write_report(folder)
    if as_json:
        echo_json({"report": str(path)})
    else:
        click.echo(path)
