"""Keypoints of a folder; and a condition that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldmkit.conditioning import Canvas, Conditioner, ConditionerSet, Conditioning, Ports
from ldmkit.data import Dataset, Field, Info, Sample, Source
from ldmkit.data.examples import Examples
from ldmkit.data.sources.folder.source import FolderSource
from ldmkit.errors import DataError


class Amount(Conditioner):
    """A number that is not negative."""

    reads = ("amount",)

    def __init__(self) -> None:
        super().__init__()
        self.emits = Ports(vector=1)

    def prepare(self, sample: Mapping[str, Any], generator: Any = None) -> dict[str, torch.Tensor]:
        if sample["amount"] < 0:
            raise DataError(f"the amount is {sample['amount']}", hint="it is 0 or more")
        return {"amount": torch.tensor([float(sample["amount"])])}

    def encode(self, prepared: dict[str, torch.Tensor], canvas: Canvas) -> Conditioning:
        return Conditioning(vector=prepared["amount"].to(canvas.dtype))

    def null(self, canvas: Canvas) -> Conditioning:
        return Conditioning(vector=canvas.zeros(1, 1))


class Amounts(Source):
    """An image a number."""

    def __init__(self, *, amounts: tuple[float, ...]) -> None:
        self.amounts = amounts

    def info(self) -> Info:
        return Info(len(self.amounts), {"image": Field("image"), "amount": Field("number")})

    def split(self, part: str) -> Source:
        return self

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        loaders = {"image": lambda: Image.new("RGB", (32, 32)), "amount": lambda: self.amounts[index]}
        return Sample(loaders, name=f"row {index}")


def examples(*amounts: float) -> Examples:
    conditioners = ConditionerSet({"amount": Amount()}, vector_width=4)
    return Examples(Dataset(Amounts(amounts=amounts), size=32), conditioners, seed=0, batch=2)


def test_a_condition_that_is_none_names_sample_slot_field_and_remedy() -> None:
    with pytest.raises(DataError) as caught:
        examples(-2.0)[0]
    assert str(caught.value) == "row 0: slot amount, field amount: the amount is -2.0\n  it is 0 or more"


def folder(path: Path, *cells: Any) -> FolderSource:
    lines = []
    for number, cell in enumerate(cells):
        Image.new("RGB", (100, 50), (number, 0, 0)).save(path / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "keypoints": cell}))
    (path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return FolderSource(path=str(path), validation=0)


def test_keypoints_of_a_folder_become_shares_and_follow_a_mirror(tmp_path: Path) -> None:
    cells = ({"right_eye": [25, 10], "left_eye": [75, 10], "nose": None}, [["nose", 50, 25]], None, {"nose": [500, 1]})
    source = folder(tmp_path, *cells)
    field = source.info().fields["keypoints"]
    assert (field.kind, field.names) == ("keypoints", ("left_eye", "nose", "right_eye"))
    by_name = {source[i]["file_name"]: source[i]["keypoints"] for i in range(4)}
    assert by_name["0.png"].tolist() == [[2, 0.25, pytest.approx(0.2)], [0, 0.75, pytest.approx(0.2)]]
    assert by_name["1.png"].tolist() == [[1, 0.5, 0.5]]
    assert by_name["2.png"] is None
    assert len(by_name["3.png"]) == 0
    assert "1 keypoints outside their image left out" in source.info().notes
    dataset = Dataset(source, size=(50, 100), flip=True, views=16)
    views = {tuple(dataset.sample(item)["keypoints"].flatten().tolist()) for item in range(16)}
    # the eye on the left of the image is the right one, mirrored or not
    near = pytest.approx(0.2)
    assert [list(view) for view in views] == [[2, 0.25, near, 0, 0.75, near], [0, 0.75, near, 2, 0.25, near]] or [
        list(view) for view in views
    ] == [[0, 0.75, near, 2, 0.25, near], [2, 0.25, near, 0, 0.75, near]]


@pytest.mark.parametrize(
    ("cell", "words"),
    [([["nose", 1]], "a keypoint is"), ("{nose", "are no JSON"), ({"nose": ["a", 1]}, "a keypoint is"), (3, "int")],
)
def test_keypoints_that_are_none_name_their_row(tmp_path: Path, cell: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)metadata.jsonl:1.*{words}|{words}.*metadata.jsonl:1"):
        folder(tmp_path, cell)
