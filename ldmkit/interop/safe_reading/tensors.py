"""Weights from files that nobody vouches for: read without executing anything, sizes looked at before memory is taken."""

from __future__ import annotations

import json
import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldmkit.errors import CheckpointError
from ldmkit.interop.safe_reading import unpickling

MOST_ENTRIES = 200_000  # members of a checkpoint's archive; the released ones have a few thousand
PRINTABLE = frozenset(range(32, 127)) | frozenset(b"\t\n\r\f")
MOST_NESTED = 4  # mappings around the tensors of a checkpoint
MOST_INDEX = 64 * 2**20  # bytes of a shard index
# What DistributedDataParallel, torch.compile and sharding put before the names of what they wrap.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint on the CPU, floating ones as float32: nothing of the file is executed.

    A torch checkpoint (`.ckpt`, `.pt`, `.bin`: its `state_dict`, or the whole where it is one), a safetensors file, or a
    sharded one (its index, or the directory that holds it). What wrappers put into names (``module.``) is taken out.

    Raises:
        CheckpointError: not there, truncated, no checkpoint at all (a web page, a pointer of git-lfs), an archive that lies
            about its sizes, or one that asks for code.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = _only_index(file)
    if not file.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    with file.open("rb") as stream:
        head = stream.read(512)
    _check_head(head, file)
    if file.name.endswith(".json"):
        tensors = _read_shards(file)
    elif head.startswith(b"PK"):
        tensors = _read_archive(file)
    elif file.suffix == ".safetensors" or head[8:9] == b"{":
        tensors = _read_safetensors(file)
    else:
        tensors = _read_legacy(file)
    return _plain(_unwrapped(tensors))


def _check_head(head: bytes, file: Path) -> None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        raise CheckpointError("the checkpoint is empty", where=str(file), hint="download it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(
            "this is a web page, not a checkpoint", where=str(file), hint="a download that asked for a login, or failed"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError("this is a pointer of git-lfs, not a checkpoint", where=str(file), hint="git lfs pull")
    if file.suffix != ".json" and start and all(byte in PRINTABLE for byte in start):
        raise CheckpointError(
            f"this is text, not a checkpoint: {start[:60].decode('ascii').splitlines()[0]!r}",
            where=str(file),
            hint="a download that failed may leave its error message in the file",
        )


def _read_archive(file: Path) -> dict[str, Tensor]:
    """torch's format since 1.6: a zip of a pickle and of storages, never compressed."""
    _check_archive(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises a dozen kinds; what it allows is narrower than what is safe
        content = unpickling.read(file, error)
    return _state_dict(content, file)


def _check_archive(file: Path) -> None:
    size = file.stat().st_size
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint is truncated or damaged: {error}", where=str(file), hint="download it again"
        ) from error
    if len(members) > MOST_ENTRIES:
        raise CheckpointError(
            f"the archive has {len(members)} members; at most {MOST_ENTRIES} are read", where=str(file)
        )
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(
            "the archive is compressed, which torch never does: it may unpack to far more than it is",
            where=str(file),
            hint="if you trust it, load and save it again with torch",
        )
    if sum(member.file_size for member in members) > size:
        raise CheckpointError("the archive claims to hold more than its own size", where=str(file))


def _read_legacy(file: Path) -> dict[str, Tensor]:
    """torch's format before 1.6: pickles one after the other. Only torch's own reader of weights looks at it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle that torch would not have written
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if (asked := unpickling.asked(file)) is not None:
            raise unpickling.refused(asked, file) from error
        raise CheckpointError(
            "this is not a checkpoint, or it is truncated or damaged",
            where=str(file),
            hint="torch checkpoints (.ckpt, .pt) and safetensors are read; a truncated file has to be downloaded again",
        ) from error
    return _state_dict(content, file)


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    content = _innermost(content, file)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"the checkpoint holds {type(content).__name__} and no state_dict", where=str(file))
    tensors = {str(name): value.detach() for name, value in _tensors(content).items()}
    if not tensors:
        raise CheckpointError("the checkpoint holds no tensors", where=str(file))
    for name, value in tensors.items():
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            kind = "has no values" if value.is_meta else f"is {'quantised' if value.is_quantized else 'sparse'}"
            raise CheckpointError(f"the tensor {name} {kind}; plain ones are read", where=str(file))
        if value.nbytes > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"the tensor {name} claims the shape {tuple(value.shape)}, more than the file holds", where=str(file)
            )
    return tensors


def _tensors(content: Mapping[Any, Any]) -> dict[Any, Tensor]:
    """The tensors of a mapping; arrays of numpy are such too."""
    arrays = {name: torch.from_numpy(value) for name, value in content.items() if isinstance(value, np.ndarray)}
    return {name: value for name, value in content.items() if isinstance(value, Tensor)} | arrays


def _innermost(content: Any, file: Path) -> Any:
    """What holds the tensors: the content itself, its `state_dict`, or the one mapping inside that holds some."""
    for _ in range(MOST_NESTED):
        if not isinstance(content, Mapping) or _tensors(content):
            return content
        if isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
            continue
        inside = {str(name): value for name, value in content.items() if isinstance(value, Mapping) and _holds(value)}
        if not inside:
            return content
        if len(inside) > 1:
            raise CheckpointError(
                f"the checkpoint holds tensors under {', '.join(inside)}",
                where=str(file),
                hint="save the one that is wanted by itself, or under state_dict",
            )
        (content,) = inside.values()
    return content


def _holds(content: Mapping[Any, Any]) -> bool:
    """Whether named tensors are in it, or in a state_dict one or two mappings further down."""
    named = any(isinstance(name, str) for name in _tensors(content))
    return named or any(isinstance(value, Mapping) and name == "state_dict" for name, value in content.items())


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the safetensors file cannot be read: {error}", where=str(file), hint="download it again"
        ) from error


def _only_index(folder: Path) -> Path:
    if (folder / ".metadata").is_file():
        raise CheckpointError(
            "this is a distributed checkpoint of torch, whose metadata is a pickle: it is not supported",
            where=str(folder),
            hint="turn it into safetensors where it was made",
        )
    found = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise CheckpointError(
            f"the directory holds {len(found)} safetensors files or indices; give the one to read", where=str(folder)
        )
    return found[0]


def _read_shards(index: Path) -> dict[str, Tensor]:
    if index.stat().st_size > MOST_INDEX:
        raise CheckpointError(f"the index is larger than {MOST_INDEX // 2**20} MiB", where=str(index))
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"this is not an index of a sharded checkpoint: {error}", where=str(index)) from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise CheckpointError(
                f"the index names the shard {name!r}, which is not a file beside it", where=str(index)
            )
        if not (index.parent / name).is_file():
            raise CheckpointError(f"the shard {name} is missing", where=str(index), hint="download all shards")
        shard = index.parent / name
        tensors |= _read_safetensors(shard) if name.endswith(".safetensors") else read_tensors(shard)
    if lost := [key for key in weight_map if key not in tensors]:
        raise CheckpointError(f"{lost[0]} and {len(lost) - 1} more tensors are in no shard", where=str(index))
    return tensors


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in tensors}
    if len(set(names.values())) < len(names):  # then they mean something here
        return dict(tensors)
    return {names[name]: value for name, value in tensors.items()}


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises CheckpointError naming a tensor that holds NaN or infinity."""
    for name, value in tensors.items():
        if value.is_floating_point() and not math.isfinite(float(value.sum(dtype=torch.float64))):
            raise CheckpointError(f"the tensor {name} holds values that are not finite", where=where)
