"""`ldmkit import SRC --to DIR`: models from elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from ldmkit.cli.shared import echo_json, json_option, plugin_files

SHOWN = 10  # names of tensors that --allow-partial let through


@click.command(name="import")
@click.argument("source", metavar="SRC")
@click.option("--to", "folder", required=True, metavar="DIR", help="A new directory for the model.")
@click.option("--config", metavar="FILE", help="The original YAML, for a checkpoint of the paper's code.")
@click.option("--weights", type=click.Choice(["ema", "raw"]), default="ema", show_default=True, help="Which weights.")
@click.option("--heads", type=click.IntRange(min=1), help="Attention heads, where the YAML is wrong about them.")
@click.option("--null-class", type=click.IntRange(min=0), help="The class that stands for no class; guidance needs it.")
@click.option("--allow-partial", multiple=True, metavar="PATTERN", help="Tensors that may not match: 'loss.*'")
@plugin_files
@json_option
def command(
    source: str,
    folder: str,
    config: str | None,
    weights: str,
    heads: int | None,
    null_class: int | None,
    allow_partial: tuple[str, ...],
    files: tuple[str, ...],
    as_json: bool,
) -> None:
    """Turn a checkpoint of the paper's code (.ckpt or safetensors, with its YAML) or a diffusers folder into an ldmkit model.

    Nothing in the file is executed. DIR is written whole or not at all.
    """
    from ldmkit import plugins
    from ldmkit.interop.importing import import_to

    found = import_to(
        source,
        Path(folder).expanduser(),
        config=config,
        weights="raw" if weights == "raw" else "ema",
        heads=heads,
        null_class=null_class,
        allow_partial=allow_partial,
        registry=plugins.load(files=files),
    )
    if as_json:
        echo_json(
            {"path": folder, "keys": found.report.to_json(), "notes": list(found.notes), "weights": found.weights}
        )
        return
    click.echo(f"keys: {found.report.summary}")
    for name in found.report.differences[:SHOWN]:
        click.echo(f"  does not match: {name}")
    if len(found.report.differences) > SHOWN:
        click.echo(f"  and {len(found.report.differences) - SHOWN} more (--json lists them)")
    for note in found.notes:
        click.echo(f"note: {note}")
    click.echo(folder)
