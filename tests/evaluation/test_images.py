"""Pictures and sheets: pixels that can be counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.images import (
    GAP,
    Example,
    contact_sheet,
    enlarge,
    font,
    printable,
    save,
    sheet,
    to_pil,
    to_tensor,
    wrap,
)
from ldmkit.evaluation.metrics import Nearest
from ldmkit.evaluation.pictures import held_out_examples, write_pictures


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tensor_to_picture_and_back(channels: int) -> None:
    levels = torch.randint(0, 256, (channels, 5, 7), generator=torch.Generator().manual_seed(0)).float()
    image = to_pil(levels / 127.5 - 1)
    assert image.size == (7, 5)
    torch.testing.assert_close(to_tensor(image, channels), levels / 127.5 - 1)
    assert to_pil(torch.full((1, 2, 2), 9.0)).getpixel((0, 0)) == 255  # out of range is clipped, not wrapped


def test_small_pictures_are_enlarged_with_sharp_pixels() -> None:
    small = Image.new("RGB", (2, 1))
    small.putpixel((0, 0), (10, 20, 30))
    small.putpixel((1, 0), (200, 100, 0))
    large = enlarge(small, 4)
    assert large.size == (8, 4)
    assert sorted(large.getcolors()) == [(16, (10, 20, 30)), (16, (200, 100, 0))]


def test_contact_sheet_shows_each_picture_where_it_belongs() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    page = contact_sheet([Image.new("RGB", (16, 16), colour) for colour in colours], columns=2)
    for index, colour in enumerate(colours):
        left = GAP + (index % 2) * (128 + 2 * GAP)
        top = GAP + (index // 2) * (128 + GAP)
        assert page.getpixel((left + 64, top + 64)) == (*colour, 255)
        assert page.getpixel((left, top)) == (*colour, 255)
        assert page.getpixel((left + 128, top)) == (
            255,
            255,
            255,
            0,
        )  # so that a page's own ground shows, white or black


def test_words_are_drawn_and_the_sheet_grows_with_them() -> None:
    picture = Image.new("RGB", (128, 128), (9, 9, 9))
    bare, titled = contact_sheet([picture]), contact_sheet([picture], title="step 40", captions=["a red circle"])
    assert titled.height > bare.height
    dark = titled.convert("L").crop((GAP, GAP, 120, GAP + 20)).getextrema()[0]
    assert dark < 120
    long = sheet([Example([("truth", picture)], "word " * 80)])
    assert long.height < 300  # three lines, then an ellipsis


def test_wrap_fits_every_line() -> None:
    face = font(15)
    lines = wrap("a red circle left of a blue square on grainy ground, and much more of it " * 2, face, 120)
    assert len(lines) == 3
    assert lines[-1].endswith("...")
    assert all(face.getlength(line) <= 120 for line in lines)
    assert wrap("Donaudampfschifffahrtsgesellschaftskapitän", face, 60)[0].endswith("...")
    assert wrap("", face, 60) == []
    assert printable("a\x00b\nc\u202e") == "a b c "


def test_sheets_of_odd_pictures() -> None:
    wide = Image.new("L", (300, 20), 128)
    page = sheet([Example([("map", wide), ("sample", Image.new("RGBA", (1, 1)))])], title="odd <b>")
    assert page.convert("RGB").getpixel((page.width - 1, page.height - 1)) == (255, 255, 255)
    with pytest.raises(ValueError, match="at least one"):
        sheet([])


def test_save_leaves_one_whole_file(tmp_path: Path) -> None:
    save(Image.new("RGB", (3, 3), (1, 2, 3)), tmp_path / "samples" / "latest.png")
    save(Image.new("RGB", (3, 3), (4, 5, 6)), tmp_path / "samples" / "latest.png")
    assert [file.name for file in (tmp_path / "samples").iterdir()] == ["latest.png"]
    with Image.open(tmp_path / "samples" / "latest.png") as image:
        assert image.getpixel((0, 0)) == (4, 5, 6)


def test_held_out_sheet_has_condition_bicubic_sample_truth_and_words(evaluation: Evaluation, tmp_path: Path) -> None:
    examples = held_out_examples(evaluation, 3)
    assert [title for title, _ in examples[0].pictures] == ["small", "bicubic", "sample", "truth"]
    assert examples[0].caption in ("dark", "bright")
    assert examples[1].pictures[3][1].tobytes() == to_pil(evaluation.truth[1]).tobytes()
    assert [picture.file for picture in write_pictures(evaluation, tmp_path / "samples")] == [
        "samples/held-out.png",
        "samples/reconstructions.png",
    ]
    Nearest(pictures=20).compute(evaluation)
    pictures = write_pictures(evaluation, tmp_path / "samples", count=4)
    assert [picture.file for picture in pictures] == [
        "samples/held-out.png",
        "samples/reconstructions.png",
        "samples/nearest.png",
    ]
    assert all((tmp_path / picture.file).is_file() for picture in pictures)
    assert "nothing is selected" in pictures[0].caption
