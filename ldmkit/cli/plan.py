"""`ldmkit plan RECIPE`: what would be trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ldmkit.cli.shared import aside, echo_json, echo_table, json_option, load_recipe, recipe_argument

if TYPE_CHECKING:
    from rich.table import Table

    from ldmkit.planning import Plan


@click.command(name="plan")
@recipe_argument
@click.option(
    "--gpus", type=click.IntRange(min=1), multiple=True, metavar="N", help="What each of N GPUs would hold and send."
)
@json_option
def command(
    recipe: str, overrides: tuple[str, ...], files: tuple[str, ...], gpus: tuple[int, ...], as_json: bool
) -> None:
    """Show what a recipe would train: shapes, parameters, memory, FLOPs. No weights are made.

    --gpus N (as often as you like) adds what each of N GPUs would hold and send in the diffusion stage, with a copy of the model
    each (ddp) and with shards of it (fsdp).
    """
    complete, registry = load_recipe(recipe, overrides, files)

    from ldmkit.assembly import check_fields
    from ldmkit.planning import plan

    if why := check_fields(complete, registry):
        aside(f"not checked: whether the data have the fields that the slots read: {why}")
    found = plan(complete, registry, gpus)
    if as_json:
        echo_json(found.to_json())
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{found.name}: images {found.size[0]}x{found.size[1]}, {_short(found.parameters)} parameters")
    for table in _tables(found, lines=console.is_terminal):
        console.print(table)
    console.print("FLOPs forward and backward; memory in fp32, without torch's own and the networks of a loss.")
    able = [name for name, reason in found.obstacles.items() if reason is None]
    console.print(f"Export: --format {', '.join(able)}.")
    for name, reason in found.obstacles.items():
        if reason is not None:
            console.print(f"  not --format {name}: {reason}")
    if found.shares:
        _print_shares(found)
    if found.uncounted:
        console.print(
            f"Not counted: what {', '.join(found.uncounted)} compute and keep; the data are not here, or it needs the weights."
        )


def _tables(found: Plan, *, lines: bool) -> list[Table]:
    from rich import box
    from rich.table import Table

    style: Any = {"box": box.SIMPLE if lines else None, "padding": (0, 2, 0, 0)}
    parts = Table("part", "type", "output", "parameters", "trained", "FLOPs an image", **style)
    for part in found.parts:
        flops = "" if part.flops is None else _short(part.flops)
        parts.add_row(part.name, part.kind, part.output, _short(part.parameters), _short(part.trained), flops)
    stages = Table("stage", "steps", "batch", "FLOPs in all", "memory", **style)
    for stage in found.stages:
        memory = f"{stage.memory / 2**20:,.0f} MiB"
        stages.add_row(stage.name, str(stage.steps), str(stage.batch), _short(stage.flops), memory)
    return [parts, stages]


def _print_shares(found: Plan) -> None:
    """Two lines for each number of GPUs."""
    names = ("parameters", "gradients", "moments", "averages", "gathered", "activations")
    rows = []
    for share in found.shares:
        for what, holding in (("copies", share.copies), ("shards", share.shards)):
            sizes = [*(getattr(holding, name) for name in names), holding.memory, holding.sent]
            rows.append([share.gpus, what, f"{share.rows:.4g}", *map(_size, sizes), _short(share.flops)])
    click.echo("\nOne of several GPUs, with copies of the diffusion model (ddp) or shards (fsdp)\n")
    echo_table(["GPUs", "with", "pictures", *names, "in all", "sent a step", "FLOPs a step"], rows)
    for share in found.shares:
        if not share.equal:
            click.echo(
                f"{share.gpus} GPUs cannot share the batch equally: choose a `train.batch` that {share.gpus} divides"
            )


def _size(number: int) -> str:
    return f"{number / 2**30:,.2f} GiB" if number >= 2**30 else f"{number / 2**20:,.1f} MiB"


def _short(number: int) -> str:
    """`1.23 M`."""
    value, units = float(number), ["", " k", " M", " G", " T", " P", " E"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g}{units[0]}"
