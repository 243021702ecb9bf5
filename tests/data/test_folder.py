"""`folder` against what people's folders really hold."""

from __future__ import annotations

import json
import os
import pickle
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldmkit.data import Dataset
from ldmkit.data.sources.folder.source import FolderSource
from ldmkit.errors import DataError
from ldmkit.images.files import ORIENTATION


def picture(
    path: Path | bytes, color: tuple[int, ...] = (200, 30, 40), size: tuple[int, int] = (40, 36), **options: Any
) -> None:
    """A picture with a little of everything in it, so that it does not compress to nothing."""
    noise = np.random.default_rng(abs(hash(color)) % 1000).integers(-20, 20, (size[1], size[0], 3))
    pixels = np.clip(np.array(color[:3]) + noise, 0, 255).astype(np.uint8)
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(os.fsdecode(path), **options)


def reasons(source: FolderSource, root: Path) -> dict[str, str]:
    return {os.path.relpath(problem.path, root): problem.reason for problem in source.problems}


def names(source: FolderSource) -> list[str]:
    return [source[i]["file_name"] for i in range(source.info().count or 0)]


def every(source: FolderSource, field: str) -> list[Any]:
    """A field of all pictures, by file name, whichever part they are in."""
    parts = [source.split("train"), source.split("validation")]
    pairs = [(part[i]["file_name"], part[i][field]) for part in parts for i in range(part.info().count or 0)]
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    for index in range(4):
        picture(tmp_path / f"{index}.png", (40 * index, 90, 120))
    return tmp_path


# files that are none


def _bomb(path: Path) -> None:
    Image.new("1", (9000, 9000)).save(path)


def _huge_header(path: Path) -> None:
    """A PNG that says 20,000 x 20,000 and holds nothing."""
    header = struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + b"\0\0\0\0IEND\xaeB`\x82"
    )


def _text_bomb(path: Path) -> None:
    picture(path)
    data = path.read_bytes()
    body = b"zTXt" + b"key\0\0" + zlib.compress(b"\0" * 80_000_000)
    path.write_bytes(
        data[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]
    )


def _cut(path: Path) -> None:
    picture(path, size=(200, 200))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flipped_png(path: Path) -> None:
    picture(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def _floats(path: Path) -> None:
    Image.fromarray(np.zeros((40, 40), dtype=np.float32)).save(path)


BAD = {
    "cut.jpg": (_cut, "cannot be decoded"),
    "cut.png": (_cut, "cannot be decoded"),
    "flipped.png": (_flipped_png, "cannot be decoded"),
    "empty.png": (lambda path: path.write_bytes(b""), "the file is empty"),
    "page.png": (lambda path: path.write_text("<html>not found</html>"), "not a picture in a format"),
    "vector.png": (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not a picture"),
    "folder.png": (lambda path: path.mkdir(), "a folder"),
    "pipe.png": (lambda path: os.mkfifo(path), "not a regular file"),
    "dangling.png": (lambda path: path.symlink_to("nowhere.png"), "a link that leads nowhere"),
    "loop.png": (lambda path: path.symlink_to(path.name), "a link that leads nowhere"),
    "bomb.png": (_bomb, "more than max_pixels"),
    "header.png": (_huge_header, "cannot be opened"),
    "text.png": (_text_bomb, "cannot be"),
    "floats.tif": (_floats, "value_range"),
    "tiny.png": (lambda path: picture(path, size=(1, 1)), "shorter than smallest"),
    "thin.png": (lambda path: picture(path, size=(10000, 1)), "shorter than smallest"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_and_passed_over(good: Path, name: str) -> None:
    make, reason = BAD[name]
    make(good / name)
    source = FolderSource(path=str(good))
    found = reasons(source, good)
    assert list(found) == [name]
    assert reason in found[name]
    assert len(every(source, "file_name")) == 4
    assert "1 left out" in " ".join(source.info().notes)


def test_a_bomb_is_left_out_before_it_is_decoded(good: Path) -> None:
    _bomb(good / "bomb.png")
    assert "bomb.png" in reasons(FolderSource(path=str(good), check=False), good)


def test_nothing_left_is_an_error_that_names_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no picture that can be used(?s:.*)a\.png: the file is empty"):
        FolderSource(path=str(tmp_path))


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "notes.txt").write_text("x")
    picture(tmp_path / "there" / "a.png")
    with pytest.raises(DataError) as error:
        FolderSource(path=str(here))
    text = str(error.value)
    assert all(part in text for part in ("here", ".png", "saw 1 files", "1 .txt", "there"))


@pytest.mark.parametrize(("name", "message"), [("photo", "did you mean .*photos"), ("photos/0.png", "is a file")])
def test_a_path_that_is_no_folder(tmp_path: Path, name: str, message: str) -> None:
    picture(tmp_path / "photos" / "0.png")
    with pytest.raises(DataError, match=message):
        FolderSource(path=str(tmp_path / name))


def test_a_file_that_goes_away_later_is_replaced(good: Path) -> None:
    source = FolderSource(path=str(good)).split("train")
    dataset = Dataset(source, size=32)
    gone = source[0]["file_name"]
    (good / gone).unlink()
    assert dataset.readable(0)["file_name"] == source[1]["file_name"]
    assert [os.path.basename(p.path) for p in dataset.problems] == [gone]


def test_a_file_cut_short_is_found_in_time_without_the_check(good: Path) -> None:
    _cut(good / "cut.jpg")
    source = FolderSource(path=str(good), check=False, validation=0.0).split("train")
    dataset = Dataset(source, size=32)
    item = names(source).index("cut.jpg")
    assert dataset.readable(item)["image"].shape == (3, 32, 32)
    assert "cannot be decoded" in dataset.problems[0].reason


# names and order


def test_names_of_all_kinds_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    given = [
        b"a b.png",
        b"a\nb.png",
        b"-rf.png",
        "\U0001f642.png".encode(),
        b"caf\xe9_\xff.png",
        b"n" * 251 + b".png",
        b"B.PNG",
        b"a.jpg",
    ]
    for name in given:
        picture(os.path.join(os.fsencode(tmp_path), name))
    (tmp_path / ".hidden.png").write_bytes(b"")
    source = FolderSource(path=str(tmp_path), validation=0.0).split("train")
    assert [os.fsencode(entry.picture) for entry in source.index.entries] == sorted(given)
    printed = names(source)
    json.dumps(printed).encode()
    assert "".join(printed).encode("utf-8")  # no half characters left
    assert "caf\\xe9_\\xff.png" in printed
    assert Dataset(source, size=32).sample(len(given) - 1)["image"].shape == (3, 32, 32)


def test_the_order_is_not_the_directory_s(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = names(FolderSource(path=str(good)))
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((f, d, files[::-1]) for f, d, files in walk(*a, **k)))
    assert names(FolderSource(path=str(good))) == first


def test_links_are_followed_once(good: Path) -> None:
    (good / "again").symlink_to(good)
    source = FolderSource(path=str(good))
    assert len(every(source, "file_name")) == 4
    assert reasons(source, good) == {"again": "a link to a folder that is read already"}


def test_twins_are_reported(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png")):
        picture(tmp_path / name)
    source = FolderSource(path=str(tmp_path))
    twins = [reason for reason in reasons(source, tmp_path).values() if reason.startswith("has the same name as")]
    assert len(twins) == 2


# what the pixels become


def test_pictures_of_all_sorts_are_counted(good: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, 1600).astype(np.uint16).reshape(40, 40)).save(good / "deep.png")
    frames = [Image.new("RGB", (40, 40), (80 * index, 0, 0)) for index in range(3)]
    frames[0].save(good / "moving.gif", save_all=True, append_images=frames[1:])
    (good / "a.heic").write_bytes(b"x")
    notes = " | ".join(FolderSource(path=str(good)).info().notes)
    for part in (
        "6 pictures",
        "1 grey",
        "1 with several frames",
        "sides from 36 to 40",
        "1 files of other types ignored: 1 .heic",
    ):
        assert part in notes


def test_sixteen_bits_and_transparency_and_value_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 1600).astype(np.uint16).reshape(40, 40)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.new("RGBA", (40, 40), (9, 9, 9, 0)).save(tmp_path / "glass.png")
    Image.fromarray(np.full((40, 40), 0.5, dtype=np.float32)).save(tmp_path / "half.tif")
    source = FolderSource(path=str(tmp_path), background=(1, 2, 3), value_range=(0.0, 1.0), check=False)
    images = every(source, "image")
    assert images[1].getpixel((0, 0)) == (1, 2, 3)
    assert images[2].getpixel((0, 0)) == (128, 128, 128)


def test_orientation_turns_picture_and_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture(tmp_path / "a.jpg", size=(60, 40), exif=exif)
    picture(tmp_path / "b.jpg", size=(60, 40))
    source = FolderSource(path=str(tmp_path))
    assert [image.size for image in every(source, "image")] == [(40, 60), (60, 40)]
    assert [entry.look.size for entry in source.index.entries] == [(60, 40), (40, 60)]


def test_broken_metadata_blocks_cost_nothing(tmp_path: Path) -> None:
    for name, options in (
        ("a.jpg", {"exif": b"Exif\0\0MM\0*\xff\xff\xff\xff junk"}),
        ("b.jpg", {"icc_profile": b"no profile"}),
    ):
        picture(tmp_path / name, **options)
    assert len(every(FolderSource(path=str(tmp_path)), "image")) == 2


# the split


def test_the_split_goes_by_name_and_is_never_empty(tmp_path: Path) -> None:
    for index in range(30):
        picture(tmp_path / f"{index}.png", (index, index, index))
    before = FolderSource(path=str(tmp_path), validation=0.3)
    held_out = set(names(before.split("validation")))
    assert 3 <= len(held_out) <= 16
    assert held_out.isdisjoint(names(before.split("train")))
    for index in range(30, 36):
        picture(tmp_path / f"{index}.png")
    after = set(names(FolderSource(path=str(tmp_path), validation=0.3).split("validation")))
    assert held_out <= after
    assert len(names(FolderSource(path=str(tmp_path), validation=1e-9).split("validation"))) == 1


def test_a_single_picture_cannot_be_split(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    source = FolderSource(path=str(tmp_path))
    assert names(source.split("train")) == ["a.png"]
    assert not source.holds_out()
    with pytest.raises(DataError, match="none of the 1 images is left for validation"):
        source.split("validation")


def test_folders_called_train_and_validation_are_what_they_say(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for kind in ("cat", "dog"):
            picture(tmp_path / part / kind / "0.png", (10, len(part), len(kind)))
    source = FolderSource(path=str(tmp_path))
    assert names(source.split("validation")) == ["val/cat/0.png", "val/dog/0.png"]
    assert source.info().fields["label"].names == ("cat", "dog")


def test_equal_content_on_both_sides_is_reported(tmp_path: Path) -> None:
    for name in ("train/a.png", "val/b.png"):
        picture(tmp_path / name)
    assert "also among the training pictures" in reasons(FolderSource(path=str(tmp_path)), tmp_path)["val/b.png"]


# classes by folder


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/0.png", "cat/deep/2.png"):
        picture(tmp_path / name, (len(name), 3, 3))
    source = FolderSource(path=str(tmp_path))
    assert source.info().fields["label"].names == ("cat", "dog")
    assert every(source, "label") == [0, 0, 1]
    assert "classes: 0 cat (2), 1 dog (1)" in source.info().notes
    listed = FolderSource(path=str(tmp_path), classes=("dog", "cat"))
    assert every(listed, "label") == [1, 1, 0]
    with pytest.raises(DataError, match=r"without pictures: bird; folders not listed: cat"):
        FolderSource(path=str(tmp_path), classes=("dog", "bird"))


def test_folders_with_numbers_for_names_are_classes_too(tmp_path: Path) -> None:
    for name in ("3/a.png", "7/b.png"):
        picture(tmp_path / name)
    source = FolderSource(path=str(tmp_path))
    assert source.info().fields["label"].names == ("3", "7")
    assert every(source, "label") == [0, 1]


def test_one_folder_or_loose_pictures_are_no_classes(good: Path) -> None:
    picture(good / "more" / "a.png")
    assert "label" not in FolderSource(path=str(good)).info().fields


# label maps


def maps(root: Path, ids: np.ndarray[Any, Any], name: str = "0.png") -> Path:
    folder = root / "maps"
    folder.mkdir(exist_ok=True)
    Image.fromarray(ids).save(folder / name)
    return folder


def one(root: Path) -> Path:
    picture(root / "images" / "0.png", (5, 5, 5))
    picture(root / "images" / "1.png", (6, 5, 5))
    return root / "images"


def test_label_maps_go_with_their_pictures(tmp_path: Path) -> None:
    images, ids = one(tmp_path), np.random.default_rng(0).integers(0, 5, (36, 40)).astype(np.uint8)
    ids[0] = 255
    source = FolderSource(path=str(images), maps=str(maps(tmp_path, ids)))
    assert source.info().fields["map"].classes == 5
    loaded = every(source, "map")
    assert np.array_equal(loaded[0], ids)
    assert loaded[1] is None
    assert reasons(source, images)["1.png"] == "no label map for it"
    part = next(p for p in ("train", "validation") if names(source.split(p)) == ["0.png"])
    sample = Dataset(source.split(part), size=20, crop="random", views=9).sample(4)
    assert sample["map"].shape == (20, 20)
    assert set(sample["map"].unique().tolist()) <= {0, 1, 2, 3, 4, 255}


def test_maps_may_lie_inside_the_folder(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    source = FolderSource(path=str(tmp_path), maps=str(maps(tmp_path, np.ones((36, 40), dtype=np.uint8))))
    assert names(source.split("train")) == ["0.png"]


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (
            np.full((36, 40), 7, np.uint8),
            {"map_classes": 5},
            r"id 7 \(1440 pixels out of range\); allowed: 0 to 4, and 255",
        ),
        (
            np.zeros((36, 41), np.uint8),
            {},
            r"36 x 40 pixels \(h x w\) and its map 36 x 41(?s:.*)images/0.png(?s:.*)maps/0.png",
        ),
        (
            np.full((36, 40, 3), (9, 0, 0), np.uint8),
            {},
            r"picture of mode RGB; its first pixel is \(9, 0, 0\)(?s:.*)data.map_colors: \[\[9, 0, 0\]\]",
        ),
        (
            np.zeros((36, 40, 3), np.uint8),
            {"map_colors": ((1, 1, 1),)},
            r"colour \(0, 0, 0\) at row 0, column 0 is not in map_colors",
        ),
    ],
)
def test_maps_that_cannot_be_right(tmp_path: Path, ids: Any, options: dict[str, Any], message: str) -> None:
    images = one(tmp_path)
    with pytest.raises(DataError, match=message):
        FolderSource(path=str(images), maps=str(maps(tmp_path, ids)), **options)


def test_maps_in_colours(tmp_path: Path) -> None:
    colors = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
    ids = np.random.default_rng(0).integers(0, 3, (36, 40))
    folder = maps(tmp_path, np.array(colors, dtype=np.uint8)[ids])
    source = FolderSource(path=str(one(tmp_path)), maps=str(folder), map_colors=colors)
    assert np.array_equal(every(source, "map")[0], ids)
    assert source.info().fields["map"].palette == colors


def test_no_map_at_all(tmp_path: Path) -> None:
    images = one(tmp_path)
    with pytest.raises(DataError, match="none of the 2 images has a label map"):
        FolderSource(path=str(images), maps=str(maps(tmp_path, np.zeros((36, 40), np.uint8), "other.png")))
    with pytest.raises(DataError, match="no such folder of label maps"):
        FolderSource(path=str(images), maps=str(tmp_path / "nowhere"))


def test_a_source_travels_without_its_pictures(good: Path) -> None:
    source = FolderSource(path=str(good)).split("train")
    source[0]["image"]
    small = pickle.dumps(source)
    assert len(small) < 20_000
    assert torch.equal(
        Dataset(pickle.loads(small), size=32).sample(0)["image"], Dataset(source, size=32).sample(0)["image"]
    )
