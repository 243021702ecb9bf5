"""`ldmkit report RUN`: write the report again."""

from __future__ import annotations

import click

from ldmkit.cli.shared import echo_json, json_option, run_folder


@click.command(name="report")
@click.argument("run", metavar="RUN")
@click.option(
    "--host", "with_host", is_flag=True, help="Name the machine that trained it; the page is made to be sent away."
)
@json_option
def command(run: str, with_host: bool, as_json: bool) -> None:
    """Write report.html of a run again, from what its directory holds."""
    folder = run_folder(run)

    from ldmkit.evaluation import write_report

    path = write_report(folder, with_host=with_host)
    if as_json:
        echo_json({"report": str(path)})
    else:
        click.echo(path)
