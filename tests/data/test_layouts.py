"""Thirty layouts that people describe: each is read as it is meant, and said so, or refused with the line to write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmkit.data import Dataset, Source
from ldmkit.data.overview import near_duplicates
from ldmkit.data.sources.folder.source import FolderSource
from ldmkit.errors import DataError
from tests.data.layouts import COUNT, SIDE, also, deep, ids, images, maps, noise, parquet, rows, save, table, text

COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 0]], np.uint8)


def every(source: FolderSource) -> list[dict[str, Any]]:
    """Every sample but its image, by file name."""
    parts: list[Source] = [source.split("train")]
    parts += [source.split("validation")] if source.holds_out() else []
    samples = [part[i] for part in parts for i in range(part.info().count or 0)]
    found = [{name: sample[name] for name in sample if name != "image"} for sample in samples]
    return sorted(found, key=lambda sample: str(sample["file_name"]))


def made(tmp_path: Path, write: Any, **options: Any) -> FolderSource:
    root = tmp_path / "data"
    root.mkdir(exist_ok=True)
    write(root)
    return FolderSource(path=str(root), **options)


def captions_of(source: FolderSource) -> list[Any]:
    return [sample["caption"] for sample in every(source)]


ROW = {
    "caption": lambda i: {"file_name": f"{i}.png", "caption": f"thing {i}"},
    "jpg": lambda i: {"file_name": f"{i}.jpg", "caption": f"thing {i}"},
    "backslash": lambda i: {"file_name": f".\\{i}.png", "caption": f"thing {i}"},
    "text": lambda i: {"file_name": f"{i}.png", "text": f"thing {i}"},
    "prompt": lambda i: {"file": f"{i}.png", "prompt": f"thing {i}"},
}
THINGS = [f"thing {i}" for i in range(COUNT)]

YEARS = [str(1990 + i) for i in range(COUNT)]

CAPTIONS = {
    "txt": (text(".txt"), ["a red thing"] * COUNT, "8 of 8 images have one beside them"),
    "caption": (text(".caption", "\ufeffa red thing\r\n"), ["a red thing"] * COUNT, "8 of 8 images"),
    "lines": (text(".txt", "red\n\nblue\n"), [["red", "blue"]] * COUNT, "several lines"),
    "jsonl": (rows(ROW["caption"]), THINGS, "pictures that can be used"),
    "json1": (rows(ROW["caption"], "metadata.json1"), THINGS, "metadata: read from metadata.json1"),
    "captions.csv": (
        table("captions.csv", "image,caption", lambda i: f"{i}.png,thing {i}"),
        THINGS,
        "read from captions.csv",
    ),
    "semicolons": (table("metadata.csv", "file_name;caption", lambda i: f"{i}.png;thing {i}"), THINGS, ""),
    "tabs": (table("metadata.tsv", "file_name\tcaption", lambda i: f"{i}.png\tthing {i}"), THINGS, ""),
    "utf-16": (table("metadata.csv", "file_name,caption", lambda i: f"{i}.png,thing {i}", "utf-16"), THINGS, ""),
    "parquet": (parquet, ["a cat"] * COUNT, ""),
    "years": (
        table("metadata.csv", "file_name,caption", lambda i: f"{i}.png,{1990 + i}"),
        [f"{1990 + i}" for i in range(COUNT)],
        "",
    ),
    "stems": (rows(ROW["jpg"]), THINGS, "8 rows name files with another ending"),
    "backslashes": (rows(ROW["backslash"]), THINGS, ""),
    "text column": (rows(ROW["text"]), THINGS, "the column text, which is read as caption too"),
    "prompt column": (rows(ROW["prompt"]), THINGS, "the column prompt"),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions(tmp_path: Path, name: str) -> None:
    write, expected, note = CAPTIONS[name]
    source = made(tmp_path, also(images(), write))
    assert captions_of(source) == expected
    assert note in " | ".join(source.info().notes)
    assert source.info().fields["caption"].kind == "text"


def test_json_of_file_names_and_absolute_paths(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        images()(root)
        (root / "metadata.json").write_text(
            json.dumps({str(root / f"{i}.png"): {"caption": f"thing {i}"} for i in range(COUNT)})
        )

    assert captions_of(made(tmp_path, write)) == THINGS


def test_one_of_several_captions_is_drawn_for_each_view(tmp_path: Path) -> None:
    source = made(tmp_path, also(images(), text(".txt", "red\nblue")), validation=0.0)
    drawn = [
        Dataset(source, size=16, views=8, seed=seed).sample(item)["caption"] for seed in (0, 1) for item in range(64)
    ]
    assert set(drawn) == {"red", "blue"}
    assert drawn[:64] == [Dataset(source, size=16, views=8, seed=0).sample(item)["caption"] for item in range(64)]
    assert 20 < drawn[:64].count("red") < 44, "both as often: 64 draws, four standard deviations"


def test_boxes_of_a_detector_are_no_captions(tmp_path: Path) -> None:
    source = made(tmp_path, also(images(), text(".txt", "0 0.5 0.5 0.2 0.2\n1 .1 .1 .1 .1")))
    assert "caption" not in source.info().fields
    assert "hold boxes of a detector and no captions" in " ".join(source.info().notes)


def test_two_captions_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"are both beside the image, with other words"):
        made(tmp_path, also(images(), text(".txt", "one"), text(".caption", "other")))


def test_two_tables_that_name_the_images_are_refused(tmp_path: Path) -> None:
    one, other = (table(f"{name}.csv", "file_name,caption", lambda i: f"{i}.png,x") for name in "ab")
    with pytest.raises(DataError, match=r"a\.csv and b\.csv both name(?s:.*)metadata\.csv"):
        made(tmp_path, also(images(), one, other))


# classes and splits


def test_classes_are_in_natural_order(tmp_path: Path) -> None:
    source = made(tmp_path, images(*map(str, range(12))))
    assert source.info().fields["label"].names == tuple(map(str, range(12)))
    assert all(sample["label"] == int(sample["file_name"].split("/")[0]) for sample in every(source))


SPLITS = {
    "train and val": (images("train", "val"), {}, {"train": "train", "val": "validation"}),
    "capitals": (images("Train", "Validation"), {}, {"Train": "train", "Validation": "validation"}),
    "dev": (images("training", "dev"), {}, {"training": "train", "dev": "validation"}),
    "a third": (images("train", "test", "sketches"), {}, {"train": "train", "test": "validation"}),
    "said": (images("a", "b"), {"split": {"train": "a", "validation": ["b"]}}, {"a": "train", "b": "validation"}),
}


@pytest.mark.parametrize("name", SPLITS)
def test_splits(tmp_path: Path, name: str) -> None:
    write, options, expected = SPLITS[name]
    source = made(tmp_path, write, **options)
    for part in ("train", "validation"):
        own = source.split(part)
        folders = {own[i]["file_name"].split("/")[0] for i in range(own.info().count or 0)}
        assert folders == {folder for folder, said in expected.items() if said == part}
    notes = " ".join(source.info().notes)
    assert ("left out, as they are in no split: sketches (8)" in notes) == (name == "a third")
    assert "label" not in source.info().fields


def test_class_folders_inside_splits(tmp_path: Path) -> None:
    source = made(tmp_path, images("train/cat", "train/dog", "val/cat", "val/dog", "val/emu"))
    assert source.info().fields["label"].names == ("cat", "dog", "emu"), (
        "a class that only held-out images have is known"
    )
    assert {every(source)[i]["file_name"].split("/")[1] for i in range(COUNT)} == {"cat"}


def test_a_folder_train_beside_others_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"splits, or classes\?(?s:.*)data.split: \{train: train, validation: cats\}"):
        made(tmp_path, images("train", "cats"))


def test_images_at_the_top_and_in_folders_say_what_was_done(tmp_path: Path) -> None:
    source = made(tmp_path, images("", "more"))
    assert "8 images at the top and 8 in folders: the folders are no classes" in source.info().notes


def test_the_same_image_on_both_sides_is_said(tmp_path: Path) -> None:
    source = made(tmp_path, also(images("train", "val"), lambda root: save(root / "val" / "again.png", noise(3))))
    assert [Path(p.path).name for p in source.problems if "also among the training" in p.reason] == ["again.png"]


# label maps


MAPS: dict[str, tuple[Any, dict[str, Any], int, Any]] = {
    "in a folder": (maps("maps", lambda m: m), {"maps": "maps"}, 3, None),
    "beside": (maps("", lambda m: m, "_mask.png"), {}, 3, None),
    "unlabelled": (maps("maps", lambda m: np.where(m == 2, 255, m).astype(np.uint8)), {"maps": "maps"}, 2, None),
    "0 and 255": (maps("maps", lambda m: (m * 255).astype(np.uint8), classes=2), {"maps": "maps"}, 2, (0, 255)),
    "0, 100, 200": (maps("maps", lambda m: (m * 100).astype(np.uint8)), {"maps": "maps"}, 3, (0, 100, 200)),
    "grey as RGB": (maps("maps", lambda m: np.stack([m] * 3, -1)), {"maps": "maps"}, 3, None),
    "colours": (
        maps("maps", lambda m: COLOURS[m]),
        {"maps": "maps", "map_colors": tuple(map(tuple, COLOURS.tolist()))},
        3,
        None,
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_label_maps(tmp_path: Path, name: str) -> None:
    write, options, classes, values = MAPS[name]
    root = tmp_path / "data"
    given = {**options, "maps": str(root / "maps")} if "maps" in options else options
    source = made(tmp_path, also(images(), write), **given) if name == "beside" else None
    if source is None:
        also(images("pictures"), write)(root)
        source = FolderSource(path=str(root / "pictures"), **given)
    field = source.info().fields["map"]
    assert (field.kind, field.classes, field.values) == ("map", classes, values)
    assert len(every(source)) == COUNT
    for index, sample in enumerate(every(source)):
        expected = ids(index, 2 if name == "0 and 255" else 3)
        expected = np.where(expected == 2, 255, expected) if name == "unlabelled" else expected
        assert np.array_equal(sample["map"], expected)


def test_maps_named_in_metadata(tmp_path: Path) -> None:
    def row(i: int) -> dict[str, Any]:
        return {"file_name": f"{i}.png", "mask_file_name": f"masks/{i}.png"}

    source = made(tmp_path, also(images(), maps("masks", lambda m: m), rows(row)), maps="mask")
    assert source.info().fields["map"].classes == 3
    assert np.array_equal(every(source)[2]["map"], ids(2))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (maps("maps", lambda m: COLOURS[m]), r"data\.map_colors: \[\[0, 0, 0\], \[0, 128, 0\], \[255, 0, 0\]\]"),
        (maps("maps", lambda m: m, ".jpg"), "a label map saved as JPEG(?s:.*)as PNG"),
        (
            maps("maps", lambda m: np.array([0, 3, 90], np.uint8)[m]),
            r"data\.map_values: \[0, 3, 90\], or data\.map_classes: 91",
        ),
    ],
    ids=["colours", "jpeg", "few of many"],
)
def test_maps_that_are_not_clear_are_refused(tmp_path: Path, write: Any, message: str) -> None:
    also(images("pictures"), write)(tmp_path)
    with pytest.raises(DataError, match=message):
        FolderSource(path=str(tmp_path / "pictures"), maps=str(tmp_path / "maps"))


def test_names_of_map_classes_lie_beside_them(tmp_path: Path) -> None:
    also(images("pictures"), maps("maps", lambda m: m))(tmp_path)
    (tmp_path / "maps" / "classes.json").write_text('{"0": "sky", "1": "road", "2": "car", "3": "tram"}')
    field = FolderSource(path=str(tmp_path / "pictures"), maps=str(tmp_path / "maps")).info().fields["map"]
    assert field.names == ("sky", "road", "car", "tram"), "a class that no map shows is a class all the same"
    assert field.classes == 4


# pairs


def pair(size: tuple[int, int] = (SIDE, SIDE)) -> Any:
    def write(root: Path) -> None:
        for index in range(COUNT):
            save(root / "in" / f"{index}.png", noise(index, size))

    return also(images(), write, rows(lambda i: {"file_name": f"{i}.png", "source_file_name": f"in/{i}.png"}))


def test_a_pair_of_one_size_is_cut_together(tmp_path: Path) -> None:
    source = made(tmp_path, pair(), validation=0.0)
    assert "source: colour images of the size of theirs, aligned" in " ".join(source.info().notes)
    data = Dataset(source, size=16, crop="random", flip=True, views=4, zoom=(1.0, 1.0))
    for item in range(len(data)):
        sample = data.sample(item)
        assert np.array_equal(sample["image"], sample["source"])
    apart = Dataset(made(tmp_path, pair(), validation=0.0, aligned=()), size=16).sample(0)
    assert apart["source"].shape == (3, SIDE, SIDE)


def test_a_pair_of_other_sizes_is_not_aligned_and_cannot_be(tmp_path: Path) -> None:
    assert "not aligned" in " ".join(made(tmp_path, pair((20, 20))).info().notes)
    with pytest.raises(DataError, match="source is aligned, and its image is 20 x 20 pixels"):
        made(tmp_path, pair((20, 20)), aligned=("source",))
    with pytest.raises(DataError, match="aligned names sauce; the fields with images are source"):
        made(tmp_path, pair(), aligned=("sauce",))


# depth and colours


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_numbers_of_fewer_bits_in_16_bit_files(tmp_path: Path, bits: int) -> None:
    source = made(tmp_path, deep(bits))
    pixels = np.asarray(source[0]["image"])[..., 0]
    assert (pixels.max(), pixels.min()) == (255, 0)
    assert source.info().fields["image"].range == (None if bits == 16 else (0.0, 2.0**bits - 1))
    assert f"8 images of 16 bits hold numbers of {bits} bits" in " ".join(source.info().notes)


def test_what_lies_beside_the_images(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        images()(root)
        (root / "._0.png").write_bytes(b"\0")
        (root / "more.zip").write_bytes(b"PK")
        (root / "empty.png").write_bytes(b"")
        save(root / "wörter 中文.png", noise(50))

    source = made(tmp_path, write)
    assert len(every(source)) == COUNT + 1
    assert "archives (.zip) are not looked into" in " ".join(source.info().notes)
    assert [problem.reason for problem in source.problems] == ["the file is empty"]


def test_nothing_held_out(tmp_path: Path) -> None:
    assert not made(tmp_path, images(), validation=0.0).holds_out()
    assert made(tmp_path, images(), validation=0.1).holds_out()


def test_moved_images_are_known_and_other_images_are_not(tmp_path: Path) -> None:
    """What a run that continues compares; the place is no part of it, however it is written."""
    source = made(tmp_path, images())
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    for path in ("moved", "moved/", "./moved"):
        assert FolderSource(path=f"{tmp_path}/{path}").contents() == source.contents()
    save(tmp_path / "moved" / "3.png", noise(77))
    assert FolderSource(path=str(tmp_path / "moved")).contents() != source.contents()


def test_images_that_look_alike_are_found(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        for index in range(COUNT):
            smooth = Image.fromarray(noise(index, (6, 6)) // 2 + 50).resize((48, 48), Image.Resampling.BICUBIC)
            smooth.save(root / f"{index}.png")
            if index == 2:
                smooth.point(lambda level: level + 6).resize((96, 96)).save(root / "like.png")

    source = made(tmp_path, write, validation=0.0)
    assert near_duplicates([source.split("train")]) == [("2.png", "like.png")]
