"""Directories that are there whole or not at all.

A directory of safetensors and JSON files is written beside its place, synced, given a manifest with checksums last, and renamed.
Whoever reads verifies the manifest first, so a process that dies at any file operation leaves what was there before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ldmkit.errors import CheckpointError, ResourceError

FORMAT = 1
MANIFEST = "MANIFEST.json"
TEMPORARY, TRASH = ".tmp-", ".trash-"


class DamagedError(Exception):
    """A directory that is not what its manifest says; the message says why."""


def publish(
    target: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> None:
    """Makes `target`, holding ``NAME.safetensors`` and ``NAME.json`` files; one that is there and valid is left as it is.

    Raises:
        ResourceError: it could not be written (disk full, read-only ...); nothing but a temporary directory was touched.
    """
    temporary = target.parent / f"{TEMPORARY}{target.name}-{os.getpid()}"
    try:
        os.makedirs(temporary)
        files = [_write_tensors(temporary / f"{name}.safetensors", content) for name, content in tensors.items()]
        files += [_write_json(temporary / f"{name}.json", content) for name, content in documents.items()]
        listed = {path.name: {"sha256": checksum(path), "bytes": path.stat().st_size} for path in files}
        _write_json(temporary / MANIFEST, {"format": FORMAT, **manifest, "files": listed})
        _sync_directory(temporary)
        _rename(temporary, target)
    except (OSError, RuntimeError, SafetensorError) as error:  # each of them was seen on a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise ResourceError(
            f"could not write {target}: {_reason(error)}{_space(target.parent, tensors)}",
            hint="make room or choose another place with --out; the checkpoints before this one are intact",
        ) from error


def verify(directory: Path) -> dict[str, Any]:
    """The manifest of a directory whose every file is as it was written.

    Raises:
        DamagedError: a file is missing, shorter, longer or different, or there is no manifest.
        CheckpointError: a later version of ldmkit wrote it.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        files = manifest["files"]
        version = manifest["format"]
        listed = [(directory / name, entry["bytes"], entry["sha256"]) for name, entry in files.items()]
    except FileNotFoundError:
        raise DamagedError("it has no manifest") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError("its manifest is unreadable") from None
    if not isinstance(version, int) or version > FORMAT:
        raise CheckpointError(
            f"was written in format {version}; this ldmkit reads up to {FORMAT}",
            hint="upgrade ldmkit",
            where=str(directory),
        )
    for path, size, digest in listed:
        try:
            good = path.stat().st_size == size and checksum(path) == digest
        except FileNotFoundError:
            raise DamagedError(f"{path.name} is missing") from None
        except OSError as error:
            raise DamagedError(f"{path.name} is unreadable ({_reason(error)})") from None
        if not good:
            raise DamagedError(f"{path.name} is damaged")
    return dict(manifest)


def discard(directory: Path) -> None:
    """Deletes a directory so that no half of it ever looks valid: it is renamed first."""
    trash = directory.parent / f"{TRASH}{directory.name}-{uuid.uuid4().hex[:8]}"
    os.rename(directory, trash)
    shutil.rmtree(trash, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Removes what died half-written or half-deleted. Only whoever holds the run's lock may call it."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith((TEMPORARY, TRASH)):
            shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Replaces `path` in one motion: a reader sees the old or the new file."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    _write_json(temporary, content)
    os.replace(temporary, path)


def checksum(path: Path) -> str:
    """The sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rename(temporary: Path, target: Path) -> None:
    if target.exists():
        try:
            verify(target)
        except DamagedError:
            discard(target)
        else:
            shutil.rmtree(temporary)
            return
    os.rename(temporary, target)
    _sync_directory(target.parent)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        shared = value.untyped_storage().data_ptr() in seen or value.untyped_storage().nbytes() != value.nbytes
        plain[name] = value.clone() if shared else value  # safetensors refuses tensors that share memory
        seen.add(plain[name].untyped_storage().data_ptr())
    save_file(plain, path)
    _sync_file(path)
    return path


def _write_json(path: Path, content: Any) -> Path:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    return path


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]


def _space(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> str:
    needed = sum(tensor.nbytes for content in tensors.values() for tensor in content.values())
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f" ({needed / 2**20:.1f} MiB needed, {free / 2**20:.1f} MiB free)"
