"""`ldmkit sample RUN`: pictures from a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldmkit.cli.shared import echo_json, guidance_of, json_option, pairs, plugin_files, size_of, values

if TYPE_CHECKING:
    from PIL.Image import Image


@click.command(name="sample")
@click.argument("run", metavar="RUN")
@click.option("-c", "--condition", "conditions", multiple=True, metavar="SLOT=VALUE", help='text="a red circle"')
@click.option("--negative", multiple=True, metavar="SLOT=VALUE", help="What stands in for a slot's null.")
@click.option("-n", "--count", type=click.IntRange(min=1), help="How many pictures; default 4.")
@click.option("--guidance", multiple=True, metavar="SCALE", help="A number, SLOT=SCALE, or an expression.")
@click.option("--sampler", help="Its name; `ldmkit plugins list` shows them.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the sampler.")
@click.option("-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the sampler: eta=1")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Picture i has seed SEED + i.")
@click.option("--size", metavar="SIZE", help="Pixels: 64, or HEIGHTxWIDTH.")
@click.option("--without", multiple=True, metavar="SLOT", help="Leave out a slot whose plugin is not here: it is null.")
@click.option("--weights", type=click.Choice(["ema", "raw"]), default="ema", show_default=True, help="Which weights.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda ...")
@click.option("--out", metavar="DIR", help="Where to write; default: a new directory in RUN/samples.")
@plugin_files
@json_option
def command(
    run: str,
    conditions: tuple[str, ...],
    negative: tuple[str, ...],
    count: int | None,
    guidance: tuple[str, ...],
    sampler: str | None,
    steps: int | None,
    options: tuple[str, ...],
    seed: int,
    size: str | None,
    without: tuple[str, ...],
    weights: str,
    device: str,
    out: str | None,
    files: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make pictures with a trained model. RUN is a run's directory, a saved model, or a hub repository.

    What is left out is as the model was trained and saved: its sampler, its steps, its guidance, its size.
    """
    given, against = pairs(conditions, "--condition"), pairs(negative, "--negative")
    scale, pixels, own = guidance_of(guidance), size_of(size), values(options, "--option")

    from ldmkit import plugins
    from ldmkit.build import load
    from ldmkit.training.runtime import resolve

    registry = plugins.load(files=files) if files else None
    model = load(run, "raw" if weights == "raw" else "ema", without=without, registry=registry)
    model = model.to(resolve(device=device).device)
    pictures = model.sample(
        given or None,
        count=count or 4,
        size=pixels,
        sampler=sampler,
        steps=steps,
        guidance=scale,
        negative=against or None,
        seed=seed,
        **own,
    )
    assert isinstance(pictures, list)
    folder = Path(out).expanduser() if out else _next_folder(Path(run))
    written = _write(pictures, folder, seed)
    if as_json:
        echo_json({"pictures": [str(path) for path in written[1:]], "grid": str(written[0]), "seed": seed})
    else:
        click.echo(f"{len(pictures)} pictures in {folder}; all at once: {written[0]}")


def _next_folder(run: Path) -> Path:
    """`RUN/samples/001`, the first number that is free; beside here for a model that is no directory."""
    parent = run.expanduser() / "samples" if run.expanduser().is_dir() else Path("samples")
    number = 1
    while (parent / f"{number:03d}").exists():
        number += 1
    return parent / f"{number:03d}"


def _write(pictures: Sequence[Image], folder: Path, seed: int) -> list[Path]:
    """The grid, then one PNG a picture, named by its seed. Raises ResourceError where that cannot be written."""
    from ldmkit.errors import ResourceError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "grid.png", *(folder / f"seed-{seed + row:05d}.png" for row in range(len(pictures)))]
        for path, picture in zip(paths, [_grid(pictures), *pictures], strict=True):
            picture.save(path)
    except OSError as error:
        raise ResourceError(
            f"cannot write to {folder}: {error.strerror or error}", hint="choose another place: --out DIR"
        ) from error
    return paths


def _grid(pictures: Sequence[Image]) -> Image:
    """All pictures on one sheet, as square as can be, 2 pixels apart."""
    from PIL import Image

    columns = max(1, round(len(pictures) ** 0.5 + 0.49))
    width, height = pictures[0].width + 2, pictures[0].height + 2
    rows = -(-len(pictures) // columns)
    sheet = Image.new(pictures[0].mode, (columns * width - 2, rows * height - 2), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return sheet
