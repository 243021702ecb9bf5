"""Directories that are there whole or not at all.

A directory of safetensors and JSON files is written beside its place, synced, given a manifest with checksums last, and renamed.
Whoever reads verifies the manifest first, so a process that dies at any file operation leaves what was there before.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ldmkit.errors import CheckpointError, ResourceError
from ldmkit.files import TEMPORARY, aside, write_text

FORMAT = 2  # in format 1 a manifest had no checksum of itself
MANIFEST = "MANIFEST.json"
DIGEST = "digest"  # the manifest's key for a checksum of the rest of it
TRASH = ".trash-"
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)  # a file system that syncs no directories


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
    temporary = aside(target)
    try:
        os.makedirs(temporary)
        files = [_write_tensors(temporary / f"{name}.safetensors", content) for name, content in tensors.items()]
        files += [_write_json(temporary / f"{name}.json", content) for name, content in documents.items()]
        listed = {path.name: {"sha256": checksum(path), "bytes": path.stat().st_size} for path in files}
        content = {"format": FORMAT, **manifest, "files": listed}
        _write_json(temporary / MANIFEST, {**content, DIGEST: digest(content)})
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
    if version > 1 and manifest.get(DIGEST) != digest(manifest):
        raise DamagedError(f"{MANIFEST} is damaged")
    for path, size, expected in listed:
        try:
            good = path.stat().st_size == size and checksum(path) == expected
        except FileNotFoundError:
            raise DamagedError(f"{path.name} is missing") from None
        except OSError as error:
            raise DamagedError(f"{path.name} is unreadable ({_reason(error)})") from None
        if not good:
            raise DamagedError(f"{path.name} is damaged")
    return dict(manifest)


def discard(directory: Path) -> None:
    """Deletes a directory so that no half of it ever looks valid: it is renamed first.

    Where the file system cannot (an overlay whose lower layer has the directory), its manifest goes first.
    """
    trash = directory.parent / f"{TRASH}{directory.name}-{uuid.uuid4().hex[:8]}"
    try:
        os.rename(directory, trash)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        (directory / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(directory)
    else:
        shutil.rmtree(trash, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Removes what died half-written or half-deleted. Only whoever holds the run's lock may call it."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith((TEMPORARY, TRASH)):
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)  # if it is a file


def write_json(path: Path, content: Any) -> None:
    """Replaces `path` in one motion: a reader sees the old or the new file."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True))


def digest(manifest: Mapping[str, Any]) -> str:
    """The sha256 of a manifest's content, in the form that JSON gives back."""
    content = json.loads(json.dumps({name: value for name, value in manifest.items() if name != DIGEST}))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
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
