"""A saved model: `config.json` and safetensors; no code, no pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldmkit.conditioning import StoredNull
from ldmkit.errors import CheckpointError, ResourceError
from ldmkit.latent_diffusion.networks import Networks

FORMAT = 1
CONFIG, WEIGHTS, RAW, NULLS = "config.json", "model.safetensors", "raw.safetensors", "nulls.safetensors"


def write(model: Networks, path: Path, raw: Mapping[str, Tensor] | None = None) -> Path:
    """The model in a new directory, written aside and renamed, so that no half of it is ever seen.

    Raises CheckpointError where something is there already, ResourceError where it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path} exists already", hint="choose a new directory; nothing was written")
    aside = path.parent / f".{path.name}-{uuid4().hex[:8]}"
    try:
        aside.mkdir(parents=True)
        config = json.dumps({"format": FORMAT, **model.config}, indent=2, ensure_ascii=False)
        (aside / CONFIG).write_text(config + "\n", encoding="utf-8")
        save_file(_plain({**model.state_dict(), **_left_out(model)}), aside / WEIGHTS, metadata={"format": "pt"})
        if raw:
            save_file(_plain(raw), aside / RAW, metadata={"format": "pt"})
        nulls = _nulls(model)
        if nulls:
            save_file(_plain(nulls), aside / NULLS, metadata={"format": "pt"})
        if path.exists():
            path.rmdir()
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:  # the second is what safetensors says of a full disk
        raise ResourceError(
            f"the model cannot be written to {path}: {str(error).strip() or type(error).__name__}",
            hint="make room, or choose a place that can be written; nothing is there now",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def _left_out(model: Networks) -> dict[str, Tensor]:
    """The weights of slots that the model was loaded without: saved as they were."""
    absent = {slot: c for slot, c in model.conditioners.items() if isinstance(c, StoredNull)}
    return {f"conditioners.{slot}.{name}": value for slot, c in absent.items() for name, value in c.weights.items()}


def _nulls(model: Networks) -> dict[str, Tensor]:
    training = model.training
    model.eval()
    with torch.no_grad():
        nulls = model.conditioners.nulls(model.canvas())
    model.train(training)
    return nulls


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # A copy each: safetensors refuses tensors that share memory (an expanded null, tied weights).
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}


def read_config(path: Path) -> dict[str, Any]:
    """The `config.json` of a saved model. Raises `CheckpointError`."""
    file = path / CONFIG
    if not file.is_file():
        raise CheckpointError(
            f"there is no saved model in {path}: {CONFIG} is missing", hint="give a run, or what `model.save` wrote"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise CheckpointError(f"{file} is no configuration of ldmkit")
    if config["format"] > FORMAT:
        raise CheckpointError(
            f"{file} has format {config['format']}; this ldmkit reads up to {FORMAT}", hint="upgrade ldmkit"
        )
    return config


def read_weights(path: Path, weights: Literal["ema", "raw"] = "ema") -> dict[str, Tensor]:
    """The tensors of a saved model, averaged ("ema") or as the optimizer left them ("raw"). Raises `CheckpointError`."""
    tensors = _read(path / WEIGHTS)
    if weights == "raw" and (path / RAW).exists():
        tensors.update(_read(path / RAW))
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: the tensor {name} holds values that are not finite")
    return tensors


def read_nulls(path: Path, slot: str) -> dict[str, Tensor]:
    """The null of a slot as it was saved: port (and ``mask``) -> one row. Raises `CheckpointError` where there is none."""
    tensors = _read(path / NULLS)
    found = {name.partition(".")[2]: value for name, value in tensors.items() if name.partition(".")[0] == slot}
    if not found:
        raise CheckpointError(
            f"{path / NULLS} holds no null of slot {slot}", hint="save the model again, with its plugin"
        )
    return found


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} cannot be read: {error}", hint="the file is missing or damaged; save the model again"
        ) from error
