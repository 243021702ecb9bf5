"""`ldmkit export RUN --format diffusers --to DIR`: models for elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from ldmkit.cli.shared import aside, echo_json, json_option, plugin_files


@click.command(name="export")
@click.argument("run", metavar="RUN")
@click.option("--to", "folder", required=True, metavar="DIR", help="A new directory.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["diffusers", "compvis", "hub"]),
    default="diffusers",
    show_default=True,
    help="A pipeline folder; the paper's layout; ldmkit's own with a model card.",
)
@click.option("--verify", is_flag=True, help="Run the folder with diffusers and compare (format diffusers).")
@click.option("--weights", type=click.Choice(["ema", "raw"]), default="ema", show_default=True, help="Which weights.")
@click.option("--licence", metavar="NAME", help="For the model card: apache-2.0, cc-by-4.0 ...")
@plugin_files
@json_option
def command(
    run: str,
    folder: str,
    form: Literal["diffusers", "compvis", "hub"],
    verify: bool,
    weights: str,
    licence: str | None,
    files: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write a trained model for other software. RUN is a run's directory, a saved model, or a hub repository.

    What the other software cannot represent is refused with the reason. DIR is written whole or not at all.
    """
    if verify and form != "diffusers":
        raise click.UsageError("--verify is for --format diffusers")

    from ldmkit import plugins
    from ldmkit.interop.diffusers.folders import check_new
    from ldmkit.interop.exporting import export_to
    from ldmkit.runs.loading import load

    target = Path(folder).expanduser()
    check_new(target)
    registry = plugins.load(files=files) if files else None
    model = load(run, "raw" if weights == "raw" else "ema", registry=registry, note=aside)
    options: Any = {"both": weights == "ema", "verify": verify, "licence": licence}
    done = export_to(model, target, form, run=Path(run).expanduser(), **options)
    if as_json:
        verified = None if done.verified is None else done.verified.to_json()
        echo_json({"path": folder, "format": form, "pipeline": done.pipeline, "verified": verified})
        return
    if done.pipeline is not None:
        click.echo(f"pipeline: {done.pipeline}")
    if done.verified is not None:
        click.echo(
            f"verified with diffusers: the largest difference is {done.verified.largest:.2g} standard deviations"
        )
    click.echo(folder)
