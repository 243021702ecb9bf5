"""Many samples, one a row of a list of conditions or of held-out data: resumable, and shared among processes."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldmkit.errors import DataError, ResourceError, UsageError
from ldmkit.files import replacing

SETTINGS, CONDITIONS = "settings.json", "conditions.jsonl"
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

Make = Callable[[range], Sequence[Image.Image]]  # the images of some rows
Progress = Callable[[int, int, float], None]  # done, total, images a second


def read_conditions(path: Path, slots: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a .jsonl or .csv file: slot -> value; what is empty or null is absent. Images are paths relative to the file.

    Raises `DataError` naming line and column.
    """
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise DataError(f"{path.name} is neither .jsonl nor .csv", where=str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list of conditions cannot be read: {error}", where=str(path)) from error
    rows = list(_jsonl(text, path) if path.suffix.lower() == ".jsonl" else _csv(text))
    if not rows:
        raise DataError("the list of conditions is empty", where=str(path))
    return [_row(values, f"{path}:{line}", path.parent, slots) for line, values in rows]


def _jsonl(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise DataError(f"no JSON: {error}", where=f"{path}:{number}") from error


def _csv(text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for row in reader:
        yield reader.line_num, row


def _row(values: Any, where: str, folder: Path, slots: Sequence[str]) -> dict[str, Any]:
    if not isinstance(values, Mapping) or None in values:
        raise DataError("a row is a mapping of slots to values, with as many cells as there are columns", where=where)
    if unknown := [str(name) for name in values if name not in slots]:
        raise DataError(
            f"no slot is called {', '.join(unknown)}", hint=f"the slots are {', '.join(slots) or 'none'}", where=where
        )
    found = {str(slot): value for slot, value in values.items() if value is not None and value != ""}
    for slot, value in found.items():
        if isinstance(value, str) and value.lower().endswith(IMAGES) and (folder / value).is_file():
            found[slot] = str(folder / value)
    return found


@dataclass(frozen=True)
class Share:
    """Which rows this process makes: every `count`-th batch."""

    rank: int = 0
    count: int = 1

    @classmethod
    def of_environment(cls) -> Share:
        """What torchrun says, else all."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def write_listed(
    folder: Path,
    total: int,
    make: Make,
    *,
    settings: Mapping[str, Any],
    conditions: Callable[[int], Mapping[str, Any]],
    batch: int = 16,
    share: Share | None = None,
    progress: Progress = lambda done, total, speed: None,
) -> int:
    """Writes ``00000.png`` and so on, those that are not there yet, and returns how many were made now.

    Args:
        make: the images of rows; a row's image depends on the row alone.
        settings: what they depend on; a folder that was begun with others is refused.
        conditions: of a row, for ``conditions.jsonl``.
        batch: rows at a time; changes no image beyond rounding.

    Raises:
        UsageError: the folder holds images of other settings.
        ResourceError: it cannot be written.
    """
    share = share or Share.of_environment()
    digits = max(5, len(str(total - 1)))
    try:
        _begin(folder, settings, total, digits, conditions, first=share.rank == 0)
        made, started = 0, time.monotonic()
        for number, start in enumerate(range(0, total, batch)):
            rows = range(start, min(start + batch, total))
            names = [folder / f"{row:0{digits}d}.png" for row in rows]
            if number % share.count != share.rank or all(name.is_file() for name in names):
                continue
            for name, image in zip(names, make(rows), strict=True):
                with replacing(name) as temporary:
                    image.save(temporary, format="PNG")
            made += len(rows)
            progress(rows.stop, total, made / (time.monotonic() - started))
    except OSError as error:
        raise ResourceError(
            f"cannot write to {folder}: {error.strerror or error}", hint="choose another place: --out DIR"
        ) from error
    return made


def _begin(
    folder: Path,
    settings: Mapping[str, Any],
    total: int,
    digits: int,
    conditions: Callable[[int], Mapping[str, Any]],
    *,
    first: bool,
) -> None:
    """The folder, what its images were made with, and the conditions of each."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = json.loads(json.dumps(settings, default=str))
    if (folder / SETTINGS).is_file():
        before = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if differing := sorted(key for key in {*before, *asked} if before.get(key) != asked.get(key)):
            raise UsageError(
                f"{folder} holds images of other settings: {', '.join(differing)}",
                hint="choose another place: --out DIR",
            )
        return
    if not first:
        return
    if any(folder.glob("*.png")):
        raise UsageError(f"{folder} has images already", hint="choose another place: --out DIR")
    lines = (
        json.dumps({"file_name": f"{row:0{digits}d}.png", **conditions(row)}, ensure_ascii=False, default=str)
        for row in range(total)
    )
    (folder / CONDITIONS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / SETTINGS).write_text(json.dumps(asked, indent=1), encoding="utf-8")
