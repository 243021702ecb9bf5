from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ldmkit.data import Dataset
from ldmkit.data.sources.folder.source import FolderSource
from ldmkit.errors import DataError
from ldmkit.training import data_fingerprint


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for part, count in (("train", 4), ("validation", 2)):
        (folder / part).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 40), (10 * number, 90, 200)).save(folder / part / f"{number}.png")
    return folder


def taken(folder: Path, check: bool = True) -> dict[str, object]:
    source = FolderSource(path=str(folder), check=check)
    return data_fingerprint.take(*(Dataset(source.split(part), size=32) for part in ("train", "validation")))


def test_the_same_folder_is_the_same_wherever_it_lies(pictures: Path, tmp_path: Path) -> None:
    before = taken(pictures)
    pictures.rename(tmp_path / "elsewhere")
    assert data_fingerprint.differences(before, taken(tmp_path / "elsewhere")) == []


@pytest.mark.parametrize("check", [True, False], ids=["decoded", "not decoded"])
def test_files_that_differ_are_named(pictures: Path, tmp_path: Path, check: bool) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert data_fingerprint.check(run, taken(pictures, check), accept=False) == []
    Image.new("RGB", (40, 40)).save(pictures / "train" / "new.png")
    (pictures / "validation" / "1.png").unlink()
    Image.effect_noise((50, 50), 90).save(pictures / "train" / "2.png")
    with pytest.raises(DataError) as caught:
        data_fingerprint.check(run, taken(pictures, check), accept=False)
    for line in (
        "train: 1 added: train/new.png",
        "train: 1 changed: train/2.png",
        "train: 4 samples, and now 5",
        "validation: 1 removed: validation/1.png",
        "--accept-new-data",
    ):
        assert line in str(caught.value)
    assert len(data_fingerprint.check(run, taken(pictures, check), accept=True)) == 5
    assert data_fingerprint.check(run, taken(pictures, check), accept=False) == []  # it is what the run goes on with


def test_captions_belong_to_the_data(pictures: Path) -> None:
    rows = pictures / "train" / "metadata.csv"
    rows.write_text("file_name,text\n0.png,a cat\n1.png,a dog\n2.png,a fox\n3.png,an owl\n")
    before = taken(pictures)
    rows.write_text("file_name,text\n0.png,a cat\n1.png,a wolf\n2.png,a fox\n3.png,an owl\n")
    assert data_fingerprint.differences(before, taken(pictures)) == ["train: 1 changed: train/1.png"]


def test_many_files_leave_only_their_digest(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_fingerprint, "LISTED", 3)
    before = taken(pictures)
    assert before["train"] == {"count": 4, "content": "", "files": {}}
    Image.new("RGB", (40, 40), (1, 2, 3)).save(pictures / "train" / "2.png")
    assert data_fingerprint.differences(before, taken(pictures)) == [
        "files of the same number, with other names or content"
    ]
