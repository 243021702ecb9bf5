"""Directories that are there whole or not at all, and the small files in them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors.torch import load_file, save_file
from torch import Tensor

from ldmkit.errors import CheckpointError, ResourceError
from ldmkit.latent_diffusion.serialization import RAW

MOST_JSON = 16 * 2**20  # bytes


def check_new(folder: Path) -> None:
    """That a new directory can be made there, before any work is done for it.

    Raises:
        CheckpointError: it holds something already.
        ResourceError: it cannot be made, because a file is in its way or the place cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already", hint="choose a new directory; nothing was written")
    around = next((place for place in folder.absolute().parents if os.path.lexists(place)), None)
    if around is not None and not (around.is_dir() and os.access(around, os.W_OK)):
        what = "cannot be written" if around.is_dir() else "is no directory"
        raise ResourceError(
            f"{folder} cannot be made: {around} {what}", hint="choose another place; nothing was written"
        )


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A directory to fill, which becomes `path` when the block ends well and vanishes when it does not.

    Raises:
        CheckpointError: `path` holds something already.
        ResourceError: it cannot be written.
    """
    folder = Path(path).expanduser()
    check_new(folder)
    aside = folder.parent / f".{folder.name}-{uuid4().hex[:8]}"
    try:
        try:
            aside.mkdir(parents=True)
        except OSError as error:
            raise ResourceError(f"{folder} cannot be written: {error}") from error
        yield aside
        if folder.exists():
            folder.rmdir()
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(file: Path, value: Any) -> None:
    """Indented, with a newline at the end; the directory is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Safetensors; every tensor is copied, because some share memory."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, file, {"format": "pt"}
    )


def read_raw(run: str | Path) -> dict[str, Tensor] | None:
    """The weights before averaging of a run or a saved model in a local directory, where it has both kinds."""
    folder = Path(run).expanduser()
    file = next((place / RAW for place in (folder, folder / "model") if (place / RAW).is_file()), None)
    return None if file is None else load_file(file)


def read_json(file: Path) -> dict[str, Any]:
    """Raises CheckpointError where it is no JSON mapping."""
    try:
        if file.stat().st_size > MOST_JSON:
            raise CheckpointError(f"larger than {MOST_JSON // 2**20} MiB", where=str(file))
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read: {error}", where=str(file)) from error
    if not isinstance(value, dict):
        raise CheckpointError("is no mapping", where=str(file))
    return value
