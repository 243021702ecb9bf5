"""What a person gives: lists with a value an image, files read as the data source reads its own, what `fit` is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldmkit.conditioning import Canvas, Conditioner, ConditionerSet, Conditioning, Ports, Tensors, fitted
from ldmkit.conditioning.user_inputs import rows
from ldmkit.data import Dataset
from ldmkit.data.sources.folder.source import FolderSource
from ldmkit.errors import UsageError
from ldmkit.fields import NO_FIELDS, Field


class Several(Conditioner):
    """Reads a depth that lies on the image, a class, a number and a text."""

    reads = ("depth", "label", "height", "note")
    aligned = ("depth",)

    def __init__(self) -> None:
        super().__init__()
        self.emits = Ports(vector=4)

    def prepare(self, sample: Mapping[str, Any], generator: Any = None) -> Tensors:
        kept = {name: torch.as_tensor(sample[name]) for name in ("depth", "label", "height")}
        return {**kept, "length": torch.tensor(len(sample["note"]))}

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        return Conditioning(vector=canvas.zeros(len(prepared["label"]), 4))

    def null(self, canvas: Canvas) -> Conditioning:
        return Conditioning(vector=canvas.zeros(1, 4))


class Plain(Several):
    """The smallest one: a single field, everything else left to the core."""

    reads = ("depth",)
    aligned = ()

    def prepare(self, sample: Mapping[str, Any], generator: Any = None) -> Tensors:
        return Conditioner.prepare(self, sample, generator)


@pytest.fixture
def slots() -> ConditionerSet:
    return ConditionerSet({"text": Plain(), "several": Several()}, vector_width=4)


def test_a_list_of_texts_has_one_an_image_and_numbers_are_one_value(slots: ConditionerSet) -> None:
    assert rows({"text": ["a", "b"]}, None, slots) == [{"text": "a"}, {"text": "b"}]
    assert rows({"text": ["a", "b"], "several": "x"}, 4, slots) == [
        {"text": text, "several": "x"} for text in ("a", "b", "a", "b")
    ]
    assert rows({"text": [3, 4, 5]}, 2, slots) == [{"text": [3, 4, 5]}] * 2
    assert rows({"text": [(255, 0, 0), (0, 0, 9)]}, None, slots) == [{"text": [(255, 0, 0), (0, 0, 9)]}]


@pytest.mark.parametrize(
    ("values", "count", "message"),
    [
        ({"text": ["a", "b"]}, 3, "count is 3, but text holds 2 rows"),
        ({"text": ["a", "b"], "several": ["x"] * 3}, None, "are 2, 3; give as many of each"),
        ({"text": []}, None, "slot text was given an empty list"),
    ],
)
def test_lists_that_do_not_fit(slots: ConditionerSet, values: Any, count: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rows(values, count, slots)


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    """12-bit depths beside the images, smaller classes than folders, and a number."""
    lines = []
    for index in range(6):
        noise = np.random.default_rng(index).integers(0, 4096, (40, 48)).astype(np.uint16)
        noise[0, 0] = 4095
        (tmp_path / "depth").mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / "depth" / f"{index}.png")
        Image.fromarray((noise // 16).astype(np.uint8)).save(tmp_path / f"{index}.png")
        row = {
            "file_name": f"{index}.png",
            "depth_file_name": f"depth/{index}.png",
            "label": "cat" if index % 2 else "dog",
        }
        lines.append(json.dumps({**row, "height": index / 2, "note": "a note"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    return FolderSource(path=str(tmp_path), validation=0.0)


def test_several_fields_given_as_json_are_what_the_folder_gives(source: FolderSource, tmp_path: Path) -> None:
    conditioner = Several()
    conditioner.known_fields = {name: source.info().fields[name] for name in conditioner.reads}
    sample = Dataset(source, size=32, aligned=frozenset({"depth"})).sample(3)
    expected = conditioner.prepare(sample)
    depth = str(tmp_path / "depth" / "3.png")
    for given in ({"depth": depth, "label": "cat", "height": "1.5", "note": "a note"}, None):
        value = given or json.dumps({"depth": depth, "label": 0, "height": 1.5, "note": "a note"})
        made = conditioner.from_user(value, (32, 32))
        assert made["depth"].shape == (1, 32, 32)
        assert torch.equal(made["depth"], expected["depth"])
        assert all(made[name] == expected[name] for name in ("label", "height", "length"))


def test_wrong_fields_are_named(source: FolderSource) -> None:
    conditioner = Several()
    with pytest.raises(UsageError, match=r'was given depth\n.*\{"depth": \.\.\., "label"'):
        conditioner.from_user({"depth": 3}, (32, 32))
    conditioner.known_fields = {"label": source.info().fields["label"]}
    full = {"depth": torch.zeros(1, 32, 32), "label": "catt", "height": 1.0, "note": "x"}
    with pytest.raises(UsageError, match=r"'catt' is no class(?s:.*)did you mean 'cat'"):
        conditioner.from_user(full, (32, 32))


def test_a_conditioner_that_leaves_all_to_the_core_reads_a_path(source: FolderSource, tmp_path: Path) -> None:
    conditioner = Plain()
    conditioner.known_fields = {"depth": source.info().fields["depth"]}
    path = tmp_path / "depth" / "2.png"
    expected = Dataset(source, size=32).sample(2)["depth"]  # aligned, as its size is the image's
    for value in (str(path), path, Image.open(path)):
        assert torch.equal(conditioner.from_user(value, (32, 32))["depth"], expected)


def test_fit_of_an_older_plugin_is_called_without_fields() -> None:
    class Old(Plain):
        @classmethod
        def fit(cls, options: Any, samples: Any) -> Any:  # type: ignore[override]  # as it was written then
            return {"seen": len(list(samples))}

    class New(Plain):
        @classmethod
        def fit(cls, options: Any, samples: Any, fields: Any = NO_FIELDS) -> Any:
            return {"known": sorted(fields)}

    known = {"depth": Field("image")}
    assert fitted(Old, {}, [{}, {}], known) == {"seen": 2}
    assert fitted(New, {}, [], known) == {"known": ["depth"]}


def test_what_is_known_of_a_field_survives_json() -> None:
    field = Field(
        "map", 2, ("a", "b"), palette=((1, 2, 3), (4, 5, 6)), ignore=255, values=(0, 128), range=(0.0, 4095.0)
    )
    described = json.loads(json.dumps(field.to_json()))
    assert Field.read({**described, "of a later version": 1}) == field
    assert Field("text").to_json() == {"kind": "text"}
