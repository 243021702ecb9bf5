"""A first stage alone in a folder: `config.json` with an `autoencoder`, and its weights, named as in a whole model's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldmkit import autoencoder as autoencoders
from ldmkit.assembly import model_folder
from ldmkit.autoencoder import Autoencoder
from ldmkit.errors import CheckpointError
from ldmkit.interop.assembling import on_meta
from ldmkit.interop.diffusers.folders import new_folder, write_json, write_tensors
from ldmkit.interop.model_card import write_card
from ldmkit.latent_diffusion import read_config, read_weights
from ldmkit.messages import tensor_differences

PREFIX = "autoencoder."


def save_autoencoder(autoencoder: Autoencoder, folder: str | Path, notes: Sequence[str] = ()) -> Path:
    """Writes a new folder with its card, in which `notes` stand. Raises CheckpointError where it holds something already."""
    with new_folder(folder) as path:
        write_json(path / "config.json", {"format": 1, "autoencoder": autoencoder.config})
        write_tensors(path / "model.safetensors", {PREFIX + name: v for name, v in autoencoder.state_dict().items()})
        write_card(path, name=Path(folder).name, notes=notes)
    return Path(folder)


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """The autoencoder of such a folder, of a run, of a saved model or of a hub repository, in eval mode on the CPU.

    No plugin is needed for it, whatever conditions the model has.

    Raises:
        CheckpointError: there is none, or its weights do not fit.
    """
    path = model_folder(folder)
    config = read_config(path)
    if "autoencoder" not in config:
        raise CheckpointError(f"there is no autoencoder in {folder}")
    with on_meta():
        model = autoencoders.make(**config["autoencoder"])
    state = {name.removeprefix(PREFIX): v for name, v in read_weights(path).items() if name.startswith(PREFIX)}
    if wrong := tensor_differences(model.state_dict(), state):
        raise CheckpointError(f"the weights do not fit: {wrong}", where=str(path))
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()
