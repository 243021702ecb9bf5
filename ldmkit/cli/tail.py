"""`ldmkit tail RUN`: what a run does at this moment."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import click

from ldmkit.cli.shared import run_folder

PAUSE = 1.0  # seconds between two looks


@click.command(name="tail")
@click.argument("run", metavar="RUN")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many of the last lines to show first.",
)
@click.option("--follow/--no-follow", default=True, show_default=True, help="Follow until the run ends, or Ctrl-C.")
def command(run: str, lines: int, follow: bool) -> None:
    """Show the newest numbers of a run, and follow it, from another terminal or machine."""
    from ldmkit.runs.directory import read_status

    folder = run_folder(run)
    seen = 0
    while True:
        state = str(read_status(folder).get("state"))  # before the file: what is written between is read
        found = list(_read(folder / "metrics.jsonl"))
        for text in found[max(seen, len(found) - lines if seen == 0 else 0) :]:
            click.echo(text)
        seen = len(found)
        if not follow or state != "running":
            click.echo(f"{folder}: {state}")
            return
        time.sleep(PAUSE)


def _read(file: Path) -> Iterator[str]:
    """The whole lines of the file, as people read them; a line that is still being written is left for later."""
    if not file.is_file():
        return
    for line in file.read_text("utf-8").splitlines(keepends=True):
        try:
            values = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            continue
        if isinstance(values, dict):
            stage, step = values.pop("stage", ""), values.pop("step", "")
            numbers = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
            yield f"{stage} {step}  {numbers}"
