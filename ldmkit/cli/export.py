"""`ldmkit export RUN --format diffusers --to DIR`: models for elsewhere."""

from __future__ import annotations

import click

from ldmkit.cli.shared import echo_json, json_option, plugin_files


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
    form: str,
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
    from ldmkit.build import load
    from ldmkit.interop.compvis_save import save_compvis
    from ldmkit.interop.model_card import save_hub
    from ldmkit.interop.verifying import export_diffusers

    model = load(run, "raw" if weights == "raw" else "ema", registry=plugins.load(files=files))
    told: dict[str, object] = {"path": folder, "format": form}
    if form == "diffusers":
        pipeline, found = export_diffusers(model, folder, verify=verify)
        told |= {"pipeline": pipeline, "verified": None if found is None else found.to_json()}
        if not as_json:
            click.echo(f"pipeline: {pipeline}")
            if found is not None:
                click.echo(
                    f"verified with diffusers: the largest difference is {found.largest:.2g} standard deviations"
                )
    elif form == "compvis":
        save_compvis(model, folder)
    else:
        save_hub(model, folder, run=run, licence=licence)
    if as_json:
        echo_json(told)
    else:
        click.echo(folder)
