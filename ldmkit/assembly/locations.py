"""Where a trained model is: a run, a saved model, one that a plugin ships, a hub repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ldmkit import plugins
from ldmkit.errors import CheckpointError, OfflineError
from ldmkit.hub import cache_unless_reached
from ldmkit.plugins.catalog import NAME

if TYPE_CHECKING:
    from ldmkit.plugins import Registry


def model_folder(path: str | Path, registry: Registry | None = None) -> Path:
    """Where `config.json` is: the directory itself, a run's `model`, a plugin's model of that name, or a snapshot of the hub.

    What is on disk goes before a name. `registry`: the plugins; default: all that are installed.
    """
    folder = Path(path).expanduser()
    if (found := _within(folder)) is not None:
        return found
    if folder.is_file() or (folder / "model_index.json").is_file():
        kind = "a file" if folder.is_file() else "a pipeline of diffusers"
        raise CheckpointError(f"{path} is {kind}, and no model of ldmkit", hint=f"ldmkit import {path} --to DIR")
    near = None
    if not folder.exists() and NAME.fullmatch(str(path)):
        models = (registry or plugins.load()).models
        if str(path) in models:
            return models.folder(str(path))
        near = models.nearest(str(path))
    if folder.exists() or str(path).count("/") != 1 or str(path).startswith((".", "~", "/")):
        raise CheckpointError(
            f"there is no trained model in {path}",
            hint=(f"did you mean {near}, which a plugin ships? Else " if near else "")
            + "give a finished run, a directory that `model.save` wrote, a model's name (`ldmkit plugins list`) or owner/name",
        )
    snapshot = _snapshot(str(path))
    if (found := _within(snapshot)) is None:
        raise CheckpointError(
            f"the hub repository {path} is no model of ldmkit: it has no config.json",
            hint="a pipeline of diffusers is read from a local folder, with `ldmkit import`",
        )
    return found


def _within(folder: Path) -> Path | None:
    return next((place for place in (folder, folder / "model") if (place / "config.json").is_file()), None)


def _snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with cache_unless_reached(name):
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub's errors have no common base, and say the same to a person
        raise OfflineError(
            f"{name} is neither a local directory nor a hub repository that can be fetched: {str(error).splitlines()[0]}",
            hint="check the path, or fetch the repository where there is a network and give its local directory",
        ) from error
