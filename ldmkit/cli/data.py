"""`ldmkit data check PATH|RECIPE`: what is understood of one's own data, before anything is trained."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmkit.cli.shared import echo_json, json_option, plugin_files, values

if TYPE_CHECKING:
    from ldmkit.data import Source


@click.group(name="data")
def command() -> None:
    """Look at data before training on them."""


@command.command()
@click.argument("what", metavar="PATH|RECIPE")
@click.option("--set", "settings", multiple=True, metavar="data.KEY=VALUE", help="An option: data.validation=0.2")
@plugin_files
@json_option
def check(what: str, settings: tuple[str, ...], files: tuple[str, ...], as_json: bool) -> None:
    """What was understood of a folder, or of a recipe's data: counts, classes, sizes, fields, problems, near-duplicates."""
    from ldmkit.data.overview import overview, recipe_lines

    source = source_at(what, settings, files)
    found = overview(source)
    if Path(what).expanduser().is_dir():
        found["recipe"] = {"data": {**recipe_lines(what, found), **_options(settings)}}
    if as_json:
        echo_json(found)
    else:
        _print(what, found)


def source_at(what: str, settings: tuple[str, ...], files: tuple[str, ...] = ()) -> Source:
    """The data source of a folder, or of a recipe."""
    from ldmkit import plugins
    from ldmkit.assembly import source_of
    from ldmkit.cli.shared import load_recipe
    from ldmkit.data.sources.folder.source import FolderSource

    if not Path(what).expanduser().is_dir():
        recipe, registry = load_recipe(what, settings, files)
        return source_of(recipe, registry)
    options = plugins.load(files=files).data_sources.options_of(FolderSource)
    return FolderSource(**options.read({"path": what, **_options(settings)}).arguments())


def _options(settings: tuple[str, ...]) -> dict[str, Any]:
    return {key.removeprefix("data."): value for key, value in values(settings, "--set").items()}


def _print(what: str, found: Mapping[str, Any]) -> None:
    for part, facts in found["parts"].items():
        classes = ", ".join(f"{name} {count}" for name, count in facts.get("classes", {}).items())
        click.echo(f"{part}: {facts['count']} images" + (f" ({classes})" if classes else ""))
    if "validation" not in found["parts"]:
        click.echo("validation: none")
    if found["sizes"]:
        side = found["sizes"]["shorter_side"]
        common = ", ".join(f"{shape} ({count})" for shape, count in found["sizes"]["most_common"].items())
        click.echo(
            f"shorter sides: {side['least']} to {side['most']}, median {side['median']}; most common (h x w): {common}"
        )
    click.echo("fields:")
    for name, facts in found["fields"].items():
        more = {k: v for k, v in facts.items() if k not in ("kind", "example", "names", "palette", "background")}
        known = "".join(f", {key} {value}" for key, value in more.items())
        click.echo(f"  {name}: {facts['kind']}{known}; for example {facts['example']!r}")
    for note in found["notes"]:
        click.echo(f"note: {note}")
    for problem in found["problems"][:20]:
        click.echo(f"{'left out' if problem['left_out'] else 'remark'}: {problem['path']}: {problem['reason']}")
    if len(found["problems"]) > 20:
        click.echo(f"... and {len(found['problems']) - 20} more; --json lists all")
    for one, other in found["near_duplicates"]:
        click.echo(f"near-duplicates: {one} and {other}")
    if "recipe" in found:
        from ldmkit.recipe.flow_style import flow

        click.echo(f"\nin a recipe:\n  data: {flow(found['recipe']['data'])}")
        click.echo(f"or: ldmkit recipe new --data {shlex.quote(what)}")
