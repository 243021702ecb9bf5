"""Folders as people describe them in public threads, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COUNT = 8
SIDE = 40
Writer = Callable[[Path], None]


def noise(index: int, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(index).integers(0, 255, (*size, 3), dtype=np.uint8)


def save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def images(*folders: str, suffix: str = ".png") -> Writer:
    """`COUNT` images in each folder, none twice."""

    def write(root: Path) -> None:
        for number, folder in enumerate(folders or ("",)):
            for index in range(COUNT):
                save(root / folder / f"{index}{suffix}", noise(100 * number + index))

    return write


def ids(index: int, classes: int = 3) -> np.ndarray[Any, Any]:
    """A label map of blocks."""
    blocks = np.random.default_rng(index).integers(0, classes, (4, 4))
    blocks.flat[:classes] = range(classes)
    return np.kron(blocks, np.ones((SIDE // 4, SIDE // 4), int)).astype(np.uint8)


def also(*writers: Writer) -> Writer:
    def write(root: Path) -> None:
        for writer in writers:
            writer(root)

    return write


def text(suffix: str, content: str = "a red thing") -> Writer:
    def write(root: Path) -> None:
        for index in range(COUNT):
            (root / f"{index}{suffix}").write_text(content, encoding="utf-8")

    return write


def rows(make: Callable[[int], dict[str, Any]], name: str = "metadata.jsonl") -> Writer:
    def write(root: Path) -> None:
        lines = [json.dumps(make(index), ensure_ascii=False) for index in range(COUNT)]
        (root / name).write_text("\n".join(lines), encoding="utf-8")

    return write


def table(name: str, header: str, row: Callable[[int], str], encoding: str = "utf-8") -> Writer:
    def write(root: Path) -> None:
        content = "\n".join([header, *map(row, range(COUNT))]) + "\n"
        (root / name).write_bytes(content.encode(encoding))

    return write


def maps(folder: str, paint: Callable[[np.ndarray[Any, Any]], Any], ending: str = ".png", classes: int = 3) -> Writer:
    def write(root: Path) -> None:
        for index in range(COUNT):
            save(root / folder / f"{index}{ending}", paint(ids(index, classes)))

    return write


def parquet(root: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    made = pyarrow.table({"file_name": [f"{i}.png" for i in range(COUNT)], "caption": ["a cat"] * COUNT})
    pyarrow.parquet.write_table(made, root / "metadata.parquet")


def deep(bits: int) -> Writer:
    """Grey files of 16 bits that hold `bits`."""

    def write(root: Path) -> None:
        for index in range(COUNT):
            values = np.random.default_rng(index).integers(0, 2**bits, (SIDE, SIDE)).astype(np.uint16)
            values[0, :2] = (2**bits - 1, 0)
            save(root / f"{index}.png", values)

    return write
