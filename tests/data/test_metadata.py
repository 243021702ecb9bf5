"""metadata.jsonl and metadata.csv, right and wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmkit.data.sources.folder.source import FolderSource
from ldmkit.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, name in enumerate(("a.png", "b.png", "sub/c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 36), (index, 0, 0)).save(tmp_path / name)
    return tmp_path


def jsonl(root: Path, *rows: dict[str, Any], name: str = "metadata.jsonl") -> None:
    (root / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def every(root: Path, field: str, **options: Any) -> dict[str, Any]:
    source = FolderSource(path=str(root), **options)
    parts = [source.split("train"), source.split("validation")]
    return {part[i]["file_name"]: part[i][field] for part in parts for i in range(part.info().count or 0)}


def test_captions_from_json_lines(root: Path) -> None:
    jsonl(root, {"file_name": "a.png", "text": "one"}, {"file_name": "sub/c.png", "text": ""})
    assert every(root, "text") == {"a.png": "one", "b.png": None, "sub/c.png": ""}
    info = FolderSource(path=str(root)).info()
    assert info.fields["text"].kind == "text"
    assert "1 without a row of metadata" in info.notes


def test_captions_and_numbers_from_csv(root: Path) -> None:
    (root / "metadata.csv").write_text('\ufefffile_name,text,height\na.png,"two, with a ""comma""",1.5\nb.png,,2\n')
    assert every(root, "text") == {"a.png": 'two, with a "comma"', "b.png": None, "sub/c.png": None}
    assert every(root, "height") == {"a.png": 1.5, "b.png": 2.0, "sub/c.png": None}


def test_metadata_in_a_sub_folder_speaks_of_its_own_files(root: Path) -> None:
    jsonl(root / "sub", {"file_name": "c.png", "text": "deep"})
    assert every(root, "text")["sub/c.png"] == "deep"


def test_two_captions_are_two_samples_on_one_side(root: Path) -> None:
    jsonl(root, {"file_name": "a.png", "text": "x"}, {"file_name": "a.png", "text": "y"})
    source = FolderSource(path=str(root))
    sides = [source.index.parts[i] for i, entry in enumerate(source.index.entries) if entry.picture == "a.png"]
    assert len(sides) == 2
    assert len(set(sides)) == 1


def test_texts_of_all_sorts_come_through(root: Path) -> None:
    text = "nul \0, half \ud800, \U0001f642, \u202eright to left, \u2028line, " + "long " * 20_000
    jsonl(root, {"file_name": "a.png", "text": text})
    out = every(root, "text")["a.png"]
    out.encode("utf-8")
    assert "\0" not in out
    assert len(out) == len(text)


@pytest.mark.parametrize("labels", [["cat", "dog", "cat"], [2, 0, 2], ["2", "0", "2"]])
@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_labels_by_name_or_number(root: Path, labels: list[Any], format: str) -> None:
    files = ["a.png", "b.png", "sub/c.png"]
    if format == "csv":
        lines = [f"{file},{label}" for file, label in zip(files, labels, strict=True)]
        (root / "metadata.csv").write_text("file_name,label\n" + "\n".join(lines))
    else:
        jsonl(root, *({"file_name": file, "label": label} for file, label in zip(files, labels, strict=True)))
    named = labels[0] == "cat"
    assert list(every(root, "label").values()) != []
    assert [every(root, "label")[file] for file in files] == ([0, 1, 0] if named else [2, 0, 2])
    field = FolderSource(path=str(root)).info().fields["label"]
    assert field.names == (("cat", "dog") if named else None)
    assert field.classes == (2 if named else 3)


@pytest.mark.parametrize("label", [-1, 1.5, float("nan"), True, [1], 9, "", "bird"])
def test_labels_that_are_none_name_their_line(root: Path, label: Any) -> None:
    jsonl(
        root,
        {"file_name": "b.png", "label": "cat" if isinstance(label, str) else 1},
        {"file_name": "a.png", "label": label},
    )
    with pytest.raises(DataError, match=r"metadata\.jsonl:2: .*label"):
        FolderSource(path=str(root), classes=("cat", "dog"))


def test_boxes_are_cut_to_the_picture(root: Path) -> None:
    objects = {
        "bbox": [[10, 9, 20, 18], [-10, 0, 20, 72], [100, 0, 5, 5], [3, 3, 0, 5]],
        "categories": ["x", "y", "x", "x"],
    }
    jsonl(root, {"file_name": "a.png", "objects": objects})
    boxes = every(root, "boxes")
    assert np.allclose(boxes["a.png"], [[0, 0.25, 0.25, 0.75, 0.75], [1, 0, 0, 0.25, 1]])
    assert boxes["b.png"] is None
    source = FolderSource(path=str(root))
    assert "2 boxes outside their picture or without area left out" in source.info().notes
    assert source.info().fields["boxes"].names == ("x", "y")


@pytest.mark.parametrize(
    "objects", [{"bbox": [[1, 2, 3]], "categories": [0]}, {"bbox": [[1, 2, 3, 4]], "categories": []}, [1]]
)
def test_boxes_that_are_none(root: Path, objects: Any) -> None:
    jsonl(root, {"file_name": "a.png", "objects": objects})
    with pytest.raises(DataError, match=r"metadata\.jsonl:1: objects is"):
        FolderSource(path=str(root))


def test_partner_pictures_are_no_samples(root: Path) -> None:
    rows = [{"file_name": "a.png", "mask_file_name": "sub/c.png"}, {"file_name": "b.png", "mask_file_name": "gone.png"}]
    jsonl(root, *rows)
    masks = every(root, "mask")
    assert set(masks) == {"a.png", "b.png"}
    assert masks["a.png"].getpixel((0, 0)) == (2, 0, 0)
    assert masks["b.png"] is None
    (problem,) = FolderSource(path=str(root)).problems
    assert problem.path.endswith("gone.png")
    assert not problem.skipped


def test_a_row_without_a_picture_is_listed(root: Path) -> None:
    jsonl(root, {"file_name": "gone.png", "text": "x"})
    (problem,) = FolderSource(path=str(root)).problems
    assert "metadata.jsonl:1, but not there" in problem.reason


def test_a_file_that_is_not_utf8_names_the_byte(root: Path) -> None:
    (root / "metadata.csv").write_bytes("file_name,text\na.png,café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"metadata\.csv: byte 24 \(0xe9\) is not utf-8(?s:.*)encoding"):
        FolderSource(path=str(root))
    assert every(root, "text", encoding="latin-1")["a.png"] == "café"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", '{"file_name": "a.png"}\n{oops', r"jsonl:2: not a line of JSON"),
        ("metadata.jsonl", "[1]", r"jsonl:1: a row is an object"),
        ("metadata.jsonl", "[" * 100_000, r"jsonl:1: not a line of JSON"),
        ("metadata.jsonl", '{"photo": "a.png"}', r"jsonl:1: a row needs a file_name; this one has 'photo'"),
        ("metadata.jsonl", '{"file_name": "../../etc/x.png"}', r"leads out of the folder"),
        ("metadata.jsonl", '{"file_name": "/etc/x.png"}', r"leads out of the folder"),
        ("metadata.csv", "photo,text\na.png,x", r"csv:2: a row needs a file_name"),
        ("metadata.csv", "file_name,text\na.png,one, two", r"csv:2: more cells than the 2 columns"),
        ("metadata.csv", "file_name,text,text\n", r"csv:1: a column is there twice"),
    ],
)
def test_broken_metadata_names_its_line(root: Path, name: str, content: str, message: str) -> None:
    (root / name).write_text(content)
    with pytest.raises(DataError, match=message):
        FolderSource(path=str(root))


def test_an_encoding_that_does_not_exist(root: Path) -> None:
    jsonl(root, {"file_name": "a.png"})
    with pytest.raises(DataError, match="no encoding 'latin-99'"):
        FolderSource(path=str(root), encoding="latin-99")
