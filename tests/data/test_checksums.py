"""A bit that flipped on a disk: no decoder sees it, the list of checksums does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmkit.data import Dataset
from ldmkit.data.sources.folder.source import FolderSource
from ldmkit.errors import DataError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in sorted(folder.iterdir())]
    (tmp_path / "sums.txt").write_text("\n".join(lines) + "\n")
    return folder


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-30] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_is_seen_with_the_list_alone(pictures: Path) -> None:
    flip(pictures / "2.jpg")
    for listed in (None, str(pictures.parent / "sums.txt")):
        source = FolderSource(path=str(pictures), validation=0.0, checksums=listed)
        dataset = Dataset(source, size=(32, 32))
        found = [dataset.readable(item)["image"] for item in range(4)]
        assert len(found) == 4
        told = [(Path(problem.path).name, problem.reason) for problem in dataset.problems]
        expected = [("2.jpg", "its content is not the one in the list of checksums")] if listed else []
        assert [entry for entry in told if entry[0] == "2.jpg"] == expected


def test_a_list_that_is_none(pictures: Path) -> None:
    with pytest.raises(DataError, match="checksums cannot be read"):
        FolderSource(path=str(pictures), checksums=str(pictures / "nowhere.txt"))
    wrong = pictures.parent / "wrong.txt"
    wrong.write_text("abc  0.jpg\n")
    with pytest.raises(DataError, match="line 1 of the checksums"):
        FolderSource(path=str(pictures), checksums=str(wrong))
