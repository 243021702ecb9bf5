"""`ldmkit plugins list|show|new|check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from ldmkit.cli.shared import echo_json, echo_table, json_option, pairs, plugin_files, values

if TYPE_CHECKING:
    from ldmkit.plugins import Registry
    from ldmkit.plugins.catalog import Catalog, Entry


@click.group(name="plugins")
def command() -> None:
    """List, show, write and check plugins."""


@command.command(name="list")
@click.option("-v", "--verbose", is_flag=True, help="Show targets, and how long each plugin took to import.")
@plugin_files
@json_option
def list_plugins(verbose: bool, files: tuple[str, ...], as_json: bool) -> None:
    """What is registered, by whom, and which plugins are broken. Loads no torch."""
    from ldmkit import plugins
    from ldmkit.cli import VERBS
    from ldmkit.cli.plugin_commands import commands

    registry = plugins.load(files=files)
    commands(registry, VERBS)  # those that fail are among the problems
    entries = [(catalog, entry) for catalog in registry.catalogs.values() for entry in catalog.entries()]
    models = registry.models.entries()
    if as_json:
        echo_json(
            {
                "registered": [_facts(catalog, entry) for catalog, entry in entries],
                "models": [{"name": model.name, "folder": model.target, **vars(model.origin)} for model in models],
                "plugins": [
                    {**vars(plugin.origin), "seconds": round(plugin.seconds, 4), "hooks": list(plugin.hooks)}
                    for plugin in registry.plugins
                ],
                "problems": [
                    {**vars(problem.origin), "cause": problem.cause, "remedy": problem.remedy}
                    for problem in registry.problems
                ],
                "left_out": [{**vars(plugin.origin), "cause": plugin.cause} for plugin in registry.left_out],
            }
        )
        return
    header = ["name", "kind", "from", "version", *(["target"] if verbose else [])]
    rows = []
    for catalog, entry in entries:
        twice = " (registered twice)" if catalog.claims(entry.name) > 1 else ""
        origin = entry.origin.file or entry.origin.distribution or str(entry.origin)
        target = [entry.target] if verbose else []
        rows.append([entry.name + twice, catalog.kind.noun, origin, entry.origin.version or "", *target])
    for model in models:
        origin = model.origin.file or model.origin.distribution or str(model.origin)
        rows.append([model.name, "model", origin, model.origin.version or "", *([model.target] if verbose else [])])
    echo_table(header, rows)
    if verbose:
        click.echo()
        echo_table(
            ("plugin", "import", "hooks"),
            [
                (plugin.origin, f"{plugin.seconds * 1000:.0f} ms", ", ".join(plugin.hooks))
                for plugin in registry.plugins
            ],
        )
    for number, plugin in enumerate(registry.left_out):
        click.echo("\n" * (number == 0) + f"left out: {plugin}")
    for problem in registry.problems:
        click.echo(f"\nbroken: {problem}" + (f"\n  {problem.remedy}" if problem.remedy else ""))


@command.command()
@click.argument("name")
@click.option("-o", "--option", "given", multiple=True, metavar="NAME=VALUE", help="An option: ports may depend on it.")
@plugin_files
@json_option
def show(name: str, given: tuple[str, ...], files: tuple[str, ...], as_json: bool) -> None:
    """Everything about one name: what it is, its options with types and defaults, ports, origin. Imports it."""
    from ldmkit import plugins
    from ldmkit.messages import shown

    registry = plugins.load(files=files)
    chosen = values(given, "--option")
    found = [_details(catalog, name, chosen) for catalog in registry.catalogs.values() if name in catalog]
    if not found:
        raise _unknown(name, registry)
    if as_json:
        echo_json(found if len(found) > 1 else found[0])
        return
    for facts in found:
        click.echo(f"{facts['name']}: {facts['kind']} from {facts['from']} ({facts['target']})")
        if facts["about"]:
            click.echo(f"  {facts['about']}")
        for key in ("reads", "aligned", "ports"):
            if facts.get(key):
                click.echo(f"  {key}: {facts[key]}")
        click.echo("  options:" if facts["options"] else "  no options")
        for option in facts["options"]:
            default = "required" if option["required"] else f"default {shown(option['default'])}"
            click.echo(
                f"    {option['name']}: {option['type']}, {default}" + (f"; {option['help']}" if option["help"] else "")
            )
        if facts.get("fields"):
            click.echo("  fields:")
            for field, form in facts["fields"].items():
                click.echo(f"    {field}: {form}")


@command.command()
@click.argument("name")
@click.option("--to", metavar="DIR", help="Where to write; default: ./ldmkit-NAME")
@click.option("--kind", type=click.Choice(("conditioner", "denoiser")), default="conditioner", show_default=True)
@json_option
def new(name: str, to: str | None, kind: str, as_json: bool) -> None:
    """Write a plugin package with a conditioner or a denoiser NAME: entry point, test, recipe, README. Its tests pass at once."""
    from ldmkit import plugins
    from ldmkit.cli.scaffold import write
    from ldmkit.errors import UsageError

    catalog = plugins.load().catalogs[f"{kind}s"]
    if name in catalog:
        raise UsageError(
            f"the {kind} '{name}' already exists: {catalog.entries_of(name)[0].origin}",
            hint="choose another name: two plugins cannot register the same one",
        )
    folder = write(name, Path(to).expanduser() if to else None, kind=kind)
    if as_json:
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        echo_json({"name": name, "folder": str(folder), "files": files})
        return
    click.echo(f"{folder} is a package whose tests pass:\n")
    click.echo(f"  cd {folder}\n  pip install -e .\n  pytest\n  ldmkit plugins show {name}")


@command.command()
@click.argument("name")
@click.option("-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of its constructor.")
@click.option("--data", default="scenes", show_default=True, help="The data source that the samples come from.")
@click.option(
    "--set", "settings", multiple=True, metavar="data.KEY=VALUE", help="An option of the data: data.path=photos"
)
@click.option("--recipe", metavar="FILE", help="Take the data of this recipe.")
@click.option("--field", "fields", multiple=True, metavar="FIELD=NAME", help="Read the sample's NAME as FIELD.")
@plugin_files
@json_option
def check(
    name: str,
    options: tuple[str, ...],
    data: str,
    settings: tuple[str, ...],
    recipe: str | None,
    fields: tuple[str, ...],
    files: tuple[str, ...],
    as_json: bool,
) -> None:
    """Examine a conditioner, on samples of a data source, or a denoiser against its contract."""
    from ldmkit import plugins
    from ldmkit.cli.contract import examine

    registry = plugins.load(files=files)
    section = _data_section(recipe, data, settings)
    problem = examine(registry, name, values(options, "--option"), section, pairs(fields, "--field"))
    if as_json:
        echo_json({"name": name, "passed": problem is None, "problem": problem})
    elif problem is None:
        click.echo(f"{name} keeps its contract")
    if problem is not None:
        from ldmkit.errors import PluginError

        raise PluginError(problem)


def _data_section(recipe: str | None, type_: str, settings: tuple[str, ...]) -> dict[str, Any]:
    """The type of a data source, and its options: those of a recipe, and those given with --set."""
    given = values(settings, "--set")
    if wrong := [key for key in given if not key.startswith("data.")]:
        raise click.UsageError(f"--set {wrong[0]}: here it sets the data alone, for example data.path=photos")
    section: dict[str, Any] = {"type": type_}
    if recipe is not None:
        from ldmkit.recipe import load

        section = load(recipe).resolved(redact=False)["data"]
    return {**section, **{key.removeprefix("data."): value for key, value in given.items()}}


def _facts(catalog: Catalog, entry: Entry) -> dict[str, Any]:
    return {"name": entry.name, "kind": catalog.kind.noun, "target": str(entry.target), **vars(entry.origin)}


def _details(catalog: Catalog, name: str, given: dict[str, Any]) -> dict[str, Any]:
    from ldmkit.plugins.options import describe

    entry, loaded = catalog.entry(name), catalog.load(name)
    model = catalog.options_of(loaded)
    defaults = model.model_construct().plain()
    options = [
        {
            "name": field.alias,
            "type": describe(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation),
            "required": field.is_required(),
            "default": None if field.is_required() else defaults[str(field.alias)],
            "help": field.description,
        }
        for field in model.model_fields.values()
    ]
    return {
        **_facts(catalog, entry),
        "from": str(entry.origin),
        "about": ((loaded.__doc__ or "").strip().splitlines() or [""])[0],
        "options": options,
        **_conditioner_facts(catalog, loaded, given),
        **_source_facts(catalog, name, loaded, given),
    }


def _conditioner_facts(catalog: Catalog, loaded: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What only conditioners have. Ports are known once one is made: of what is given, defaults, and a usual latent space."""
    if not getattr(loaded, "reads", None):
        return {}
    import torch

    from ldmkit.cli.contract import made
    from ldmkit.errors import LdmkitError

    facts = {"reads": ", ".join(loaded.reads), "aligned": ", ".join(loaded.aligned)}
    try:
        with torch.device("meta"):
            emits = made(catalog, loaded, given).emits
    except LdmkitError:  # it needs options, which `fit` may learn from the data
        if given:
            raise
        return {**facts, "ports": "known once its options are: give some with -o NAME=VALUE"}
    ports = {port: width for port, width in vars(emits).items() if width}
    return {**facts, "ports": ", ".join(f"{port} {width}" for port, width in ports.items())}


def _source_facts(catalog: Catalog, name: str, loaded: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The fields of a data source and their form, of what is given and defaults; nothing where a required option is not given."""
    from ldmkit.cli.contract import source_of
    from ldmkit.data import Source
    from ldmkit.fields import described

    if not (isinstance(loaded, type) and issubclass(loaded, Source)):
        return {}
    required = {field.alias for field in catalog.options_of(loaded).model_fields.values() if field.is_required()}
    if required - set(given):
        return {}
    source = source_of(catalog, {"type": name, **given})
    return {"fields": {field: described(facts) for field, facts in source.info().fields.items()}}


def _unknown(name: str, registry: Registry) -> Exception:
    from ldmkit.errors import PluginError
    from ldmkit.messages import did_you_mean

    names = [known for catalog in registry.catalogs.values() for known in catalog]
    broken = [
        problem
        for problem in (*registry.problems, *registry.left_out)
        if name in (problem.origin.entry_point, problem.origin.distribution)
    ]
    if broken:
        return PluginError(str(broken[0]), hint=broken[0].remedy)
    guess = did_you_mean(name, names)
    package = "" if guess else f"; perhaps: pip install ldmkit-{name}"
    return PluginError(
        f"nothing is registered as '{name}'{guess}", hint=f"`ldmkit plugins list` shows what is{package}"
    )
