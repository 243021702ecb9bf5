"""`load`: a trained model, also from the checkpoints of a run that has not come to its end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ldmkit.runs.directory import RECIPE, read_status

if TYPE_CHECKING:
    from ldmkit.latent_diffusion import LatentDiffusion
    from ldmkit.plugins import Registry
    from ldmkit.training.checkpointing.checkpoints import Checkpoint

Which = int | Literal["newest", "best"]


def load(
    path: str | Path,
    weights: Literal["ema", "raw"] = "ema",
    *,
    checkpoint: Which | None = None,
    without: Sequence[str] = (),
    registry: Registry | None = None,
    note: Callable[[str], None] | None = None,
) -> LatentDiffusion:
    """A trained model in eval mode on the CPU: from a run's directory, a saved model's, a name, or a hub repository.

    A name is that of a model which a plugin ships ("digits"); a hub repository is "owner/name"; what is on disk goes before both.
    A run that has not come to its end gives the model of its newest checkpoint, and says so.

    Args:
        weights: averaged (``ema``), or as the optimizer left them (``raw``).
        checkpoint: of a run, one of its diffusion stage instead of the finished model: a step, ``newest``, or ``best``, the one
            with the lowest validation loss.
        without: slots that need no plugin: they are null and take no value. Of finished models only.
        registry: the plugins; default: all that are installed, and the files that the model was trained with.
        note: is told what was loaded where that is not the finished model; default: a warning.

    Raises:
        CheckpointError: nothing that can be read is there, or its weights do not fit.
        PluginError: a conditioner's plugin is not installed; the error names distribution and version.
        OfflineError: a hub repository that is not in the local cache and cannot be fetched.
        UsageError: `checkpoint` of what is no run, or `without` for a run that has not come to its end.
    """
    from ldmkit.assembly import load as load_model
    from ldmkit.errors import UsageError

    folder = Path(path).expanduser()
    is_run = (folder / RECIPE).is_file()
    if checkpoint is None and not (is_run and not (folder / "model" / "config.json").is_file()):
        return load_model(path, weights, without=without, registry=registry, reader=load)
    if not is_run:
        raise UsageError(f"{path} is no run's directory, and only a run has checkpoints", hint="leave out `checkpoint`")
    if without:
        raise UsageError(
            "`without` leaves slots out of a finished model, which has their nulls", hint="finish the run: ldmkit run"
        )
    found = _checkpoint(folder, checkpoint or "newest")
    (note or _warn)(_about(folder, found, weights))
    return _model(folder, found, weights, registry)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _about(folder: Path, found: Checkpoint, weights: str) -> str:
    own = "average weights" if weights == "ema" and found.has("ema") else "raw weights"
    steps = read_status(folder).get("steps")
    return f"{folder}: the {own} of step {found.step}{f' of {steps}' if steps else ''}, from its checkpoint"


def _checkpoint(folder: Path, which: Which) -> Checkpoint:
    """The checkpoint of the diffusion stage that is asked for. Raises CheckpointError where there is none."""
    from ldmkit.errors import CheckpointError
    from ldmkit.training.checkpointing.checkpoints import Checkpoints

    checkpoints = Checkpoints(folder / "checkpoints" / "diffusion")
    there = checkpoints.all()
    if not there:
        stage, step = read_status(folder).get("stage") or "first", read_status(folder).get("step")
        raise CheckpointError(
            f"{folder} has no checkpoint of its diffusion stage yet (its {stage} stage is"
            f"{f' at step {step}' if step else ''} under way), so there is nothing to sample from",
            hint="`ldmkit run` with the same recipe continues it",
        )
    if which == "newest":
        return there[-1]
    if which == "best":
        scored = [c for c in there if c.manifest.get("score") is not None]
        return min(scored, key=lambda c: float(c.manifest["score"])) if scored else there[-1]
    for found in there:
        if found.step == which:
            return found
    steps = ", ".join(str(found.step) for found in there)
    raise CheckpointError(
        f"{folder} has no checkpoint of step {which}", hint=f"there are {steps}; train.keep keeps more"
    )


def _model(folder: Path, found: Checkpoint, weights: str, registry: Registry | None) -> LatentDiffusion:
    """The model that the checkpoint's manifest describes, with its weights and those of the finished first stage."""
    from ldmkit import plugins
    from ldmkit.assembly import Reader, plugin_files, require_parts, restore
    from ldmkit.errors import CheckpointError
    from ldmkit.training.checkpointing.checkpoints import Checkpoints

    described = found.manifest
    if "model" not in described:
        raise CheckpointError(f"{found.path} does not say what its model is", hint="finish the run: ldmkit run")
    config = {**described["model"], "conditioners": described["conditioners"], "dropout": described["dropout"]}
    registry = registry or plugins.load(files=plugin_files(config))
    require_parts(config, registry)
    tensors = found.tensors("model")
    if weights == "ema" and found.has("ema"):
        tensors |= found.tensors("ema")
    for name, prefix in (("first-stage", "autoencoder"), ("scale", "autoencoder"), ("frozen", "conditioners")):
        kept = Checkpoints(folder / "checkpoints" / name).newest()
        if kept is not None:
            tensors |= {f"{prefix}.{key}": value for key, value in kept.tensors(prefix).items()}
    model = restore(config, tensors, registry, where=str(found.path))
    model.loader = Reader(registry.discovery, load)
    return model
