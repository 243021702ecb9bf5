"""`ldmkit recipe list|copy|new|check|show|schema`."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import click

from ldmkit.cli.shared import aside, echo_json, echo_table, json_option, plugin_files, recipe_argument


@click.group(name="recipe")
def command() -> None:
    """List, copy, write, check and show recipes."""


@command.command(name="list")
@json_option
def list_recipes(as_json: bool) -> None:
    """The recipes that come with ldmkit."""
    from ldmkit.recipe import bundled

    rows = [(name, _title(path), path) for name, path in bundled().items()]
    if as_json:
        echo_json([{"name": name, "title": title, "path": str(path)} for name, title, path in rows])
        return
    echo_table(("name", "what it is"), [(name, title) for name, title, _ in rows])
    click.echo("\nldmkit run NAME trains one, ldmkit recipe copy NAME gets it to change")


def _title(path: Path) -> str:
    """The recipe's first comment, without its file name."""
    first = path.read_text("utf-8").partition("\n")[0].lstrip("# ").strip()
    return first.partition(" - ")[2] or first


@command.command()
@click.argument("name")
@click.argument("to", required=False)
def copy(name: str, to: str | None) -> None:
    """Write a bundled recipe to a file of your own (TO, by default NAME.yaml here). Nothing is overwritten."""
    from ldmkit.errors import UsageError
    from ldmkit.recipe import find

    source = find(name)
    target = Path(to) if to else Path(source.name)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise UsageError(f"{target} already exists", hint=f"ldmkit recipe copy {name} OTHER.yaml")
    if not target.parent.is_dir():
        raise UsageError(f"there is no directory {target.parent}")
    shutil.copyfile(source, target)
    click.echo(f"{target}\n  ldmkit run {target}")


@command.command()
@click.option("--data", "path", required=True, metavar="PATH", help="The folder of your images.")
@click.option("--condition", "conditions", multiple=True, metavar="NAME", help="A conditioner: text, class ...")
@click.option("--steps", type=click.IntRange(min=1), help="Of each stage; default 1000 and 2000.")
@click.option(
    "--to", metavar="FILE", help="Where to write; default: NAME-OF-THE-FOLDER.yaml here. Nothing is overwritten."
)
@plugin_files
def new(path: str, conditions: tuple[str, ...], steps: int | None, to: str | None, files: tuple[str, ...]) -> None:
    """Write a recipe of ten lines for a folder of your own."""
    from ldmkit import plugins
    from ldmkit.cli.new_recipe import write

    target = write(plugins.load(files=files), path, conditions, to, steps)
    click.echo(f"{target}\n  ldmkit run {shlex.quote(str(target))}")


@command.command()
@recipe_argument
@click.option(
    "--components", is_flag=True, help="Check the options of components and the data's fields too; this imports torch."
)
@json_option
def check(recipe: str, overrides: tuple[str, ...], files: tuple[str, ...], components: bool, as_json: bool) -> None:
    """Check a recipe: every error at once, with file, line and column. Loads no torch unless --components is given."""
    from ldmkit import plugins
    from ldmkit.recipe import load

    registry = plugins.load(files=files)
    checked = load(recipe, overrides, registry=registry if components else None)
    checked.require_components(registry)
    if components:
        from ldmkit.assembly import check_fields

        if why := check_fields(checked, registry):
            aside(f"not checked: whether the data have the fields that the slots read: {why}")
    facts = {"name": checked.name, "path": str(checked.source), "components": components, "valid": True}
    if as_json:
        echo_json(facts)
    else:
        also = "" if components else "; --components checks the options of its components too"
        click.echo(f"{checked.source} is valid{also}")


@command.command()
@recipe_argument
@json_option
def show(recipe: str, overrides: tuple[str, ...], files: tuple[str, ...], as_json: bool) -> None:
    """Print a recipe with every default written out, those of its components too (this imports them)."""
    from ldmkit.cli.shared import load_recipe

    complete, _ = load_recipe(recipe, overrides, files)
    if as_json:
        echo_json(complete.resolved())
    else:
        click.echo(complete.to_yaml(), nl=False)


@command.command()
def schema() -> None:
    """Print the JSON schema of recipes, for completion in editors."""
    from ldmkit.recipe import Recipe

    echo_json(Recipe.json_schema())
