"""What was understood of a data source, for a person and for programs: counts, sizes, fields, problems, near-duplicates."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmkit.data.source import Part, Source
from ldmkit.errors import DataError
from ldmkit.images.files import printable

LOOKED_AT = 2000  # images compared with each other
NEAR = 3  # of 64 bits in which two images may differ and still be near-duplicates
LISTED = 10


def overview(source: Source) -> dict[str, Any]:
    """JSON values: ``parts`` (count, classes), ``sizes``, ``fields`` (kind, what is known, an example), ``notes``, ``problems``
    and ``near_duplicates`` (pairs of names) of a finite source. Images are decoded, at most `LOOKED_AT`.

    Raises DataError for an endless source.
    """
    names: tuple[Part, ...] = ("train", "validation") if source.holds_out() else ("train",)
    parts = {part: source.split(part) for part in names}
    info = parts["train"].info()
    if info.count is None:
        raise DataError("an endless source cannot be counted", hint="check a folder, a table or shards")
    return {
        "parts": {part: _part(own) for part, own in parts.items()},
        "sizes": _sizes([size for own in parts.values() for size in own.sizes() or ()]),
        "fields": _fields(parts["train"]),
        "notes": list(info.notes),
        "problems": [
            {"path": printable(p.path), "reason": p.reason, "left_out": p.skipped} for p in parts["train"].problems
        ],
        "near_duplicates": near_duplicates(list(parts.values())),
    }


def _part(source: Source) -> dict[str, Any]:
    info = source.info()
    found: dict[str, Any] = {"count": info.count}
    label = info.fields.get("label")
    if label is not None and info.count is not None:
        tally = Counter(source[index]["label"] for index in range(info.count))
        shown = {number: label.names[number] if label.names else str(number) for number in range(label.classes or 0)}
        found["classes"] = {name: tally[number] for number, name in shown.items()}
    return found


def _sizes(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    if not sizes:
        return {}
    shorter = sorted(min(size) for size in sizes)
    shapes = Counter(f"{height}x{width}" for height, width in sizes)
    return {
        "shorter_side": {"least": shorter[0], "median": statistics.median_low(shorter), "most": shorter[-1]},
        "most_common": dict(shapes.most_common(3)),
        "shapes": len(shapes),
    }


def _fields(source: Source) -> dict[str, Any]:
    sample = source[0]
    return {
        name: {**field.to_json(), "example": _example(sample[name])} for name, field in source.info().fields.items()
    }


def _example(value: Any) -> Any:
    """A value in a few words."""
    if isinstance(value, Image.Image):
        return f"{value.height}x{value.width} {value.mode}"
    if isinstance(value, np.ndarray):
        return f"{'x'.join(map(str, value.shape))} {value.dtype}"
    if isinstance(value, str) and len(value) > 60:
        return value[:57] + "..."
    return value if isinstance(value, str | int | float) or value is None else f"{value!r:.60}"


def near_duplicates(parts: Sequence[Source]) -> list[tuple[str, str]]:
    """Pairs of file names whose images look alike: 64 differences of neighbouring pixels agree but for `NEAR`.

    The first `LISTED` pairs; flat images, which all look alike so, are not compared.
    """
    names: list[str] = []
    marks: list[NDArray[np.bool_]] = []
    for part in parts:
        for index in range(min(part.info().count or 0, LOOKED_AT - len(names))):
            sample = part[index]
            small = np.asarray(sample["image"].convert("L").resize((9, 8), Image.Resampling.BOX), dtype=int)
            steps = np.diff(small, axis=1).ravel()
            if np.abs(steps).mean() >= 1:
                names.append(_name(sample, index))
                marks.append(steps > 0)
    if not marks:
        return []
    bits = np.stack(marks).astype(np.float32)
    apart = bits @ (1 - bits).T + (1 - bits) @ bits.T  # Hamming distances
    first, second = np.nonzero(np.triu(apart <= NEAR, k=1))
    return [(names[a], names[b]) for a, b in zip(first[:LISTED], second[:LISTED], strict=True)]


def _name(sample: Mapping[str, Any], index: int) -> str:
    return str(sample["file_name"]) if "file_name" in sample else str(index)


def recipe_lines(path: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The `data` section that uses a folder: path, and a size that its images have."""
    median = found["sizes"].get("shorter_side", {}).get("median", 64)
    size = next((size for size in (256, 128, 64) if size <= median), 32)
    return {"type": "folder", "path": path, "size": min(size, 64 if sum_of(found) < 20_000 else 256)}


def sum_of(found: Mapping[str, Any]) -> int:
    """All samples of an overview."""
    return sum(int(part["count"] or 0) for part in found["parts"].values())
