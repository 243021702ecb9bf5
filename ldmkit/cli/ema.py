"""`ldmkit ema RUN --sigma-rel 0.05`: a model with averages of another length, made after training."""

from __future__ import annotations

from pathlib import Path

import click

from ldmkit.cli.shared import aside, echo_json, json_option, plugin_files, run_folder

POOR = 0.05  # of a profile's size: an average that is further off is not what was asked for


@click.command(name="ema")
@click.argument("run", metavar="RUN")
@click.option("--sigma-rel", type=float, required=True, help="The length of the average, as a share of the training.")
@click.option("--step", type=click.IntRange(min=1), help="The step of the snapshot; default: the last.")
@click.option("--to", "target", metavar="DIR", help="A new directory; default: RUN/post-hoc/<sigma-rel>.")
@plugin_files
@json_option
def command(
    run: str, sigma_rel: float, step: int | None, target: str | None, files: tuple[str, ...], as_json: bool
) -> None:
    """Make a model whose weights are averaged over another share of the training than the run's own average.

    RUN was trained with `train: {post_hoc: {}}`, which tracks two averages and keeps snapshots of them. Any other length is put
    together from these (Karras et al. 2024). The model is saved whole: `ldmkit sample DIR` reads it.
    """
    folder = run_folder(run)

    from ldmkit import plugins
    from ldmkit.runs.loading import load
    from ldmkit.training.posthoc import SNAPSHOTS, reconstruct

    found = reconstruct(folder / "checkpoints" / "diffusion" / SNAPSHOTS, sigma_rel, step=step)
    model = load(folder, registry=plugins.load(files=files) if files else None, note=lambda text: None)
    model.load_state_dict({**model.state_dict(), **found.tensors})
    place = Path(target).expanduser() if target else folder / "post-hoc" / f"{sigma_rel:g}"
    model.save(place)
    if found.error > POOR:
        aside(
            f"the snapshots cannot be combined to an average of this length: it is {found.error:.0%} off; choose one nearer to "
            "train.post_hoc.sigma_rel, or keep more snapshots"
        )
    if as_json:
        told = {"path": str(place), "step": found.step, "snapshots": found.snapshots, "error": found.error}
        echo_json(told)
    else:
        click.echo(f"{place}: averaged over {sigma_rel:g} of the training up to step {found.step}")
        click.echo(f"  from {found.snapshots} snapshots of two averages each; {found.error:.1%} off the exact profile")
