"""What a run's data were when it began, so that other data are noticed before they are trained on: `data.json` of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldmkit.data import Dataset
from ldmkit.errors import DataError
from ldmkit.training.checkpointing.atomic_dir import write_json

FILE = "data.json"
LISTED = 50_000  # files whose names are kept; of more, only the digest of all
NAMED = 3  # in a message


def take(train: Dataset, validation: Dataset) -> dict[str, Any]:
    """What both parts are: ``count`` and ``files`` (name -> content) of each, and the ``digest`` of all."""
    parts = {"train": train, "validation": validation}
    found: dict[str, Any] = {
        name: {
            "count": part.count,
            "content": part.source.fingerprint(),
            "files": dict(part.source.contents()),
        }
        for name, part in parts.items()
    }
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    if sum(len(part["files"]) for part in found.values()) > LISTED:
        found = {name: {**part, "files": {}} for name, part in found.items()}
    return {"digest": digest, **found}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed, a line each: files that were added, removed or changed, or at least the numbers of samples."""
    if before.get("digest") == now["digest"]:
        return []
    lines = []
    for part in ("train", "validation"):
        was, is_ = before.get(part, {}), now[part]
        old, new = was.get("files") or {}, is_["files"]
        kinds = {
            "added": [name for name in new if name not in old],
            "removed": [name for name in old if name not in new],
            "changed": [name for name in new if name in old and old[name] != new[name]],
        }
        if old and new:
            lines += [f"{part}: {len(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names]
        if was.get("count") != is_["count"]:
            lines.append(f"{part}: {was.get('count')} samples, and now {is_['count']}")
    return lines or ["files of the same number, with other names or content"]


def check(folder: Path, now: Mapping[str, Any], *, accept: bool) -> list[str]:
    """Compares with what `folder` remembers, and remembers; the differences, where they are accepted.

    Raises:
        DataError: the data changed since the run began, and nobody said that this is meant.
    """
    place = folder / FILE
    try:
        before = json.loads(place.read_text("utf-8"))
    except (OSError, ValueError):
        before = None
    found = [] if not isinstance(before, dict) else differences(before, now)
    if found and not accept:
        listed = "\n".join(f"    {line}" for line in found)
        raise DataError(
            f"the data are not those that the run in {folder} began with:\n{listed}",
            hint="--accept-new-data goes on with them, in another order; --out DIR or --fresh trains anew",
        )
    if found or before is None:
        write_json(place, now)
    return found


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
