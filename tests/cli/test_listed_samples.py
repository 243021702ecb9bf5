"""Samples for a list of conditions: every row once, whatever stopped it, and never over other images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldmkit.errors import DataError, UsageError
from ldmkit.evaluation.listed_samples import Share, read_conditions, write_listed


def test_a_list_is_read_by_the_names_of_its_columns(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "small.png")
    (tmp_path / "list.jsonl").write_text(
        '{"text": "a cat", "low_res": "small.png"}\n\n{"text": null}\n', encoding="utf-8"
    )
    (tmp_path / "list.csv").write_text('text,low_res\n"a cat, black",small.png\n,missing.png\n', encoding="utf-8")
    slots = ("text", "low_res")
    assert read_conditions(tmp_path / "list.jsonl", slots) == [
        {"text": "a cat", "low_res": str(tmp_path / "small.png")},
        {},
    ]
    assert read_conditions(tmp_path / "list.csv", slots) == [
        {"text": "a cat, black", "low_res": str(tmp_path / "small.png")},
        {"low_res": "missing.png"},
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"text": "x"}\n{"txt": "y"}', r"a\.jsonl:2: no slot is called txt\n  the slots are text"),
        ("a.jsonl", '{"text"', r"a\.jsonl:1: no JSON"),
        ("a.jsonl", '["x"]', "a row is a mapping"),
        ("a.csv", "text\nx,y\n", r"a\.csv:2: a row is a mapping .* as many cells"),
        ("a.csv", "text\n", "the list of conditions is empty"),
        ("a.txt", "x", "neither .jsonl nor .csv"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_conditions(tmp_path / name, ("text",))


def image_of(row: int) -> Image.Image:
    return Image.new("L", (2, 2), row)


def write(folder: Path, *, stop_at: int | None = None, **changes: Any) -> list[int]:
    """The rows that were made."""
    made: list[int] = []

    def make(rows: range) -> list[Image.Image]:
        if stop_at is not None and rows.stop > stop_at:
            raise KeyboardInterrupt
        made.extend(rows)
        return [image_of(row) for row in rows]

    asked: dict[str, Any] = {"settings": {"steps": 3}, "batch": 2, "share": Share(), **changes}
    try:
        write_listed(folder, 7, make, conditions=lambda row: {"seed": row}, **asked)
    except KeyboardInterrupt:
        assert stop_at is not None
    return made


def test_it_continues_where_it_was_stopped(tmp_path: Path) -> None:
    assert write(tmp_path, stop_at=5) == [0, 1, 2, 3]
    assert write(tmp_path) == [4, 5, 6]
    assert write(tmp_path) == []
    files = sorted(tmp_path.glob("*.png"))
    assert [file.name for file in files] == [f"{row:05d}.png" for row in range(7)]
    assert [Image.open(file).getpixel((0, 0)) for file in files] == list(range(7))
    lines = [json.loads(line) for line in (tmp_path / "conditions.jsonl").read_text().splitlines()]
    assert lines[6] == {"file_name": "00006.png", "seed": 6}


def test_processes_share_the_rows(tmp_path: Path) -> None:
    rows = [write(tmp_path, share=Share(rank, 3)) for rank in range(3)]
    assert rows == [[0, 1, 6], [2, 3], [4, 5]]


def test_images_of_other_settings_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, stop_at=3)
    with pytest.raises(UsageError, match="images of other settings: steps"):
        write(tmp_path, settings={"steps": 4})
    image_of(9).save(tmp_path.parent / "other.png")
    with pytest.raises(UsageError, match="has images already"):
        write(tmp_path.parent)
