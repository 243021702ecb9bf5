"""`ldmkit sample RUN`: pictures from a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ldmkit.cli.shared import (
    aside,
    checkpoint_of,
    echo_json,
    guidance_of,
    json_option,
    pairs,
    plugin_files,
    size_of,
    values,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ldmkit.latent_diffusion import LatentDiffusion


@click.command(name="sample")
@click.argument("run", metavar="RUN")
@click.option(
    "-c",
    "--condition",
    "conditions",
    multiple=True,
    metavar="SLOT=VALUE",
    help='text="a red circle"; given again, one image each; text=@prompts.txt takes one per line.',
)
@click.option(
    "--negative", multiple=True, metavar="SLOT=VALUE", help="What stands in for a slot's null; several with perp-neg."
)
@click.option(
    "-n",
    "--count",
    type=click.IntRange(min=1),
    help="How many images; default 4, or one per condition.",
)
@click.option("--guidance", multiple=True, metavar="SCALE", help="A number, SLOT=SCALE, or an expression.")
@click.option(
    "-g", "--guidance-option", "guidance_options", multiple=True, metavar="NAME=VALUE", help="type=apg, rescale=0.7 ..."
)
@click.option("--sampler", help="Its name; `ldmkit plugins list` shows them.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the sampler.")
@click.option("-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the sampler: eta=1")
@click.option("--init-image", metavar="FILE", help="A picture to start from, instead of noise alone.")
@click.option("--strength", type=float, help="How far back to noise it goes, up to 1; default 0.75, with a mask 1.")
@click.option(
    "--mask", metavar="FILE", help="A mask of that image: white is painted anew, black is kept, as in diffusers."
)
@click.option("--keep", metavar="FILE", help="The reverse of --mask: white is kept.")
@click.option(
    "--progress", type=click.IntRange(min=2), metavar="N", help="N pictures of the way there, in progress.png."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Picture i has seed SEED + i.")
@click.option("--size", metavar="SIZE", help="Pixels: 64, or HEIGHTxWIDTH.")
@click.option("--without", multiple=True, metavar="SLOT", help="Leave out a slot whose plugin is not here: it is null.")
@click.option("--weights", type=click.Choice(["ema", "raw"]), default="ema", show_default=True, help="Which weights.")
@click.option(
    "--checkpoint", metavar="WHICH", help="Which of the run's checkpoints: newest, best (lowest validation), or a step."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda ...")
@click.option(
    "--conditions", "listed", metavar="FILE", help="A .jsonl or .csv, its columns slots: an image for each row."
)
@click.option(
    "--held-out", type=click.IntRange(min=1), metavar="N", help="An image for each of N held-out samples' conditions."
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=16, show_default=True, help="How many images of a list at a time."
)
@click.option("--out", metavar="DIR", help="Where to write; default: a new directory in RUN/samples.")
@plugin_files
@json_option
def command(
    run: str,
    conditions: tuple[str, ...],
    negative: tuple[str, ...],
    count: int | None,
    guidance: tuple[str, ...],
    guidance_options: tuple[str, ...],
    sampler: str | None,
    steps: int | None,
    options: tuple[str, ...],
    init_image: str | None,
    strength: float | None,
    mask: str | None,
    keep: str | None,
    progress: int | None,
    seed: int,
    size: str | None,
    without: tuple[str, ...],
    weights: str,
    checkpoint: str | None,
    device: str,
    listed: str | None,
    held_out: int | None,
    batch: int,
    out: str | None,
    files: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make pictures with a trained model. RUN is a run's directory, a saved model, the name of one that a plugin ships, or a
    hub repository.

    What is left out is as the model was trained and saved: its sampler, its steps, its guidance, its size. A run that has not
    come to its end gives its newest checkpoint.
    """
    given, against = conditions_of(conditions), negatives(negative)
    scale, pixels, own = guidance_of(guidance), size_of(size), sampler_options(options)
    method = values(guidance_options, "--guidance-option")
    more: dict[str, Any] = {"guidance_options": method or None, "image": init_image, "strength": strength, "mask": mask}
    more["keep"] = keep

    from ldmkit import plugins
    from ldmkit.cli.sample_files import PROGRESS, Facts, write
    from ldmkit.runs.loading import load
    from ldmkit.training.runtime import resolve

    which = checkpoint_of(checkpoint)

    registry = plugins.load(files=files) if files else None
    chosen: Literal["raw", "ema"] = "raw" if weights == "raw" else "ema"
    model = load(run, chosen, checkpoint=which, without=without, registry=registry, note=aside)
    model = model.to(resolve(device=device).device)
    if listed or held_out:
        from ldmkit.cli.listed import sampled_rows

        if given or count or image_asked(more) or progress or size:
            raise click.UsageError(
                "--conditions and --held-out cannot be combined with --condition, --count, --size, --progress and images"
            )
        asked: dict[str, Any] = {
            "sampler": sampler,
            "steps": steps,
            "guidance": scale,
            "guidance_options": method or None,
        }
        asked |= {"negative": against or None, "options": own or None}
        chosen_rows = (Path(listed).expanduser() if listed else None, held_out)
        target = Path(out).expanduser() if out else _next_folder(Path(run))
        told = sampled_rows(
            run, model, chosen_rows, target, {k: v for k, v in asked.items() if v is not None}, seed, batch, files
        )
        told = {**told, "weights": weights}
        if as_json:
            echo_json(told)
        else:
            click.echo(f"{told['made']} images made in {told['path']}")
        return
    if not given and len(model.conditioners):
        slots = ", ".join(model.conditioners)
        aside(
            f"no condition was given, so nothing is asked of the images: -c SLOT=VALUE gives one; the slots are {slots}"
        )
    number = count or max((len(value) for value in given.values() if isinstance(value, list)), default=4)
    more["callback"] = way = Progress(progress) if progress else None
    pictures = model.sample(
        given or None,
        count=number,
        size=pixels,
        sampler=sampler,
        steps=steps,
        guidance=scale,
        negative=against or None,
        seed=seed,
        **{name: value for name, value in more.items() if value is not None},
        **own,
    )
    assert isinstance(pictures, list)
    folder = Path(out).expanduser() if out else _next_folder(Path(run))
    asked = {"sampler": sampler, "steps": steps, "guidance": scale, "negative": against or None, "options": own or None}
    facts = Facts(run, model, given, seed, {name: value for name, value in asked.items() if value is not None})
    written = write(pictures, folder, facts, way.sheet(model) if way else None)
    if as_json:
        found = {"pictures": [str(path) for path in written[1:]], "grid": str(written[0]), "seed": seed}
        echo_json({**found, "progress": str(folder / PROGRESS)} if way else found)
    else:
        click.echo(f"{len(pictures)} pictures in {folder}; all at once: {written[0]}")


# What `sample` takes beside the sampler's options, where the command line has another way to say it, or none.
_OTHERWISE = {
    **{
        name: f"--{name}"
        for name in ("count", "size", "sampler", "steps", "guidance", "negative", "strength", "mask", "seed")
    },
    **{"values": "--condition", "guidance_options": "--guidance-option", "image": "--init-image"},
    **dict.fromkeys(("likelihood", "noise", "output", "callback")),
}


def sampler_options(texts: Sequence[str]) -> dict[str, Any]:
    """`--option`: the sampler's own options, `clip` and `cache`. Raises a usage error for what is another flag's."""
    own = values(texts, "--option")
    for name in own:
        if name in _OTHERWISE:
            instead = f"use {_OTHERWISE[name]}" if _OTHERWISE[name] else "it is available in Python only"
            raise click.UsageError(f"--option {name} is not an option of a sampler; {instead}")
    return own


def image_asked(more: dict[str, Any]) -> bool:
    """Whether sampling starts from an image."""
    return any(more[name] is not None for name in ("image", "strength", "mask"))


class Progress:
    """A callback of samplers that keeps predicted x_0 (b, c, h, w): about `count` of them, evenly, with the last."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.kept: list[Tensor] = []

    def __call__(self, done: int, total: int, noisy: Tensor, clean: Tensor) -> None:
        number = min(self.count, total)
        if done * number // total > (done - 1) * number // total:
            self.kept.append(clean)

    def sheet(self, model: LatentDiffusion) -> Image:
        """A row for each picture, from the first prediction to the last."""
        import torch

        from ldmkit.latent_diffusion import sheet, to_pil

        with torch.no_grad():
            columns = [to_pil(model.autoencoder.decode(clean)) for clean in self.kept]
        return sheet([picture for row in zip(*columns, strict=True) for picture in row], columns=len(columns))


def conditions_of(texts: Sequence[str]) -> dict[str, str | list[str]]:
    """Slot -> its value, or its values, one an image: a slot that is given again, or ``@FILE`` with one a line."""
    found: dict[str, list[str]] = {}
    for text in texts:
        ((slot, value),) = pairs([text], "--condition").items()
        found.setdefault(slot, []).extend(lines_of(value[1:]) if value.startswith("@") else [value])
    return {slot: several if len(several) > 1 else several[0] for slot, several in found.items()}


def lines_of(file: str) -> list[str]:
    """The lines of a text file that are not empty. Raises UsageError where there are none."""
    from ldmkit.errors import UsageError

    try:
        lines = Path(file).expanduser().read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"@{file} cannot be read: {error}", hint="a text file in UTF-8, with one value per line"
        ) from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UsageError(f"@{file} is empty", hint="write one value per line")
    return found


def negatives(texts: Sequence[str]) -> dict[str, str] | list[dict[str, str]]:
    """One mapping; a slot that is named again begins another one."""
    found: list[dict[str, str]] = []
    for text in texts:
        (slot, value), *_ = pairs([text], "--negative").items()
        place = next((one for one in found if slot not in one), None)
        if place is None:
            found.append(place := {})
        place[slot] = value
    return found if len(found) > 1 else next(iter(found), {})


def _next_folder(run: Path) -> Path:
    """`RUN/samples/001`, the first number that is free; beside here for a model that is no directory."""
    parent = run.expanduser() / "samples" if run.expanduser().is_dir() else Path("samples")
    number = 1
    while (parent / f"{number:03d}").exists():
        number += 1
    return parent / f"{number:03d}"
