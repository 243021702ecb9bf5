"""What the page sends -> what the command line would be given; and what is refused."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from ldmkit_demo import files
from ldmkit_demo.inputs import Input
from ldmkit_demo.painter import painter
from PIL import Image

from ldmkit import UsageError
from ldmkit.conditioning.widgets import (
    Boxes,
    Choice,
    Choices,
    File,
    ImageAndMask,
    ImageDrop,
    LabelMapCanvas,
    Mask,
    Number,
    Numbers,
    Text,
)

MAP = LabelMapCanvas(names=("a", "b"), palette=((10, 20, 30), (40, 50, 60)), values=(3, 9), ignore=255)


def given(widget, values, folder, paths=False):
    return Input("slot", widget, (2, 3), paths).given(values, folder)


def bytes_of(*numbers):
    return json.dumps({"ids": base64.b64encode(bytes(numbers)).decode()})


def opened(path):
    with Image.open(path) as image:
        return image.copy()


def png(size=(4, 2), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, 128 if mode == "L" else (1, 2, 3)).save(file, "PNG")
    return files.PNG + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("widget", "values", "text"),
    [
        (Text(), ["a red circle, on a/b.png"], "a red circle, on a/b.png"),
        (Text(), [None], ""),
        (Text(), ["@list"], " @list"),
        (Choice(names=("a", "b")), ["b"], "b"),
        (Choices(names=("a", "b", "c")), [["a", "c"]], "a, c"),
        (Choices(names=("a",)), [[]], ""),
        (Number(low=0, high=2), [0.1 + 0.2], "0.3"),
        (Numbers(numbers=(Number(name="x"), Number(name="y"))), [True, 0.5, False, 1], '{"x": 0.5}'),
        (Numbers(numbers=(Number(name="x"), Number(name="y")), optional=False), [0, 1], '{"x": 0.0, "y": 1.0}'),
        (Boxes(names=("a", "b")), ['{"boxes": [[1, 0, 0.25, 0.5, 1]]}'], "[[1, 0.0, 0.25, 0.5, 1.0]]"),
    ],
)
def test_each_widget_gives_the_text_of_the_command_line(widget, values, text, tmp_path):
    found = given(widget, values, tmp_path)
    assert (found.value, found.shown, found.files) == (text, text, ())


def test_a_painted_map_is_an_indexed_png_with_the_datas_own_numbers_and_colours(tmp_path):
    found = given(MAP, [bytes_of(0, 1, 255, 1, 1, 0)], tmp_path)
    image = opened(found.value)
    assert (image.mode, found.shown, found.value) == ("P", "slot.png", str(tmp_path / "slot.png"))
    assert np.asarray(image).tolist() == [[3, 9, 255], [9, 9, 3]]
    assert image.convert("RGB").getpixel((0, 0)) == (10, 20, 30)
    assert image.convert("RGB").getpixel((1, 0)) == (40, 50, 60)


def test_a_mask_is_white_where_it_was_painted(tmp_path):
    found = given(Mask(), [bytes_of(0, 255, 0, 0, 0, 255)], tmp_path)
    assert np.asarray(opened(found.value)).tolist() == [[0, 255, 0], [0, 0, 255]]


def test_an_image_and_its_mask_are_two_files_in_one_text(tmp_path):
    found = given(ImageAndMask(), [json.dumps({"image": png(), "mask": png(mode="L")})], tmp_path)
    assert found.shown == "slot.png,slot-mask.png"
    assert found.value == f"{tmp_path}/slot.png,{tmp_path}/slot-mask.png"
    assert opened(tmp_path / "slot.png").getpixel((0, 0)) == (1, 2, 3)
    assert opened(tmp_path / "slot-mask.png").mode == "L"


def test_a_file_keeps_its_ending_and_no_more_of_its_name(tmp_path):
    sent = {"name": "../../etc/x.NPY", "data": base64.b64encode(b"abc").decode()}
    found = given(File(suffixes=(".npy",)), [json.dumps(sent)], tmp_path)
    assert (found.shown, (tmp_path / "slot.npy").read_bytes()) == ("slot.npy", b"abc")
    assert [path.name for path in tmp_path.iterdir()] == ["slot.npy"]


@pytest.mark.parametrize(
    ("widget", "values", "words"),
    [
        (Choice(names=("a",)), [None], "nothing is chosen"),
        (Choice(names=("a",)), ["../a"], "there is no '../a'"),
        (Choices(names=("a",)), [["b"]], "there is no 'b'"),
        (Number(name="age", low=0, high=9), [10], "age lies from 0 to 9; given: 10"),
        (Number(low=0, high=9), [None], "the number lies from 0 to 9"),
        (Text(), ["a" * 10_001], "at most 10000 characters"),
        (MAP, [""], "nothing was given\n"),
        (MAP, ["[1]"], "cannot be read"),
        (MAP, [json.dumps({"ids": "@@"})], "cannot be read"),
        (MAP, [json.dumps({"ids": {"path": "/etc/passwd"}})], "cannot be read"),
        (MAP, [bytes_of(0, 1)], "has 2 x 3 pixels; given: 2"),
        (MAP, [bytes_of(0, 1, 2, 0, 0, 0)], "a class that there is not; there are 2"),
        (replace(MAP, ignore=None), [bytes_of(0, 1, 255, 0, 0, 0)], "a class that there is not"),
        (ImageDrop(), ['{"image": "/etc/passwd"}'], "no image was given"),
        (ImageDrop(), [json.dumps({"image": files.PNG + base64.b64encode(b"GIF89a").decode()})], "cannot be read"),
        (ImageDrop(), [json.dumps({"image": png((1025, 1))})], "at most 1024 pixels a side"),
        (ImageAndMask(), [json.dumps({"image": png(), "mask": png((1, 1))})], "the mask is"),
        (Boxes(names=("a",)), ['{"boxes": [[1, 0, 0, 1, 1]]}'], "one of 1 classes"),
        (Boxes(names=("a",)), ['{"boxes": [[0, 0.5, 0, 0.5, 1]]}'], "inside the image"),
        (Boxes(names=("a",)), ['{"boxes": ["/etc/passwd"]}'], r"a box is \[class, left"),
        (File(suffixes=(".npy",)), [json.dumps({"name": "a.pt", "data": ""})], "ends in .npy; this one in .pt"),
        (File(), [json.dumps({"name": "a.b c", "data": ""})], "ends in"),
    ],
)
def test_what_is_none_of_the_widgets_is_refused(widget, values, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        given(widget, values, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "/etc/passwd",
        "~/photo",
        "photo.png",
        " photo.png ",
        "a\\b",
        '{"image": "/x"}',
        "a.png,b.png",
        "pyproject.toml",
        "here",
    ],
)
def test_where_a_text_could_be_read_as_a_path_no_path_is_taken(text, tmp_path, monkeypatch):
    (tmp_path / "here").write_text("secret")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="reads no file of the machine it runs on"):
        given(Text(), [text], tmp_path, paths=True)
    assert given(Text(), ["0.5, 3 and [1, 2.5]"], tmp_path, paths=True).value == "0.5, 3 and [1, 2.5]"


def test_names_cannot_break_out_of_the_page():
    name = '"><script>alert(1)</script>${1+1}{{value}}`\\'
    template = painter(Boxes(names=(name,)), (2, 2), "slot").html_template
    assert not set("{}$`\\") & set(template)
    assert "<script" not in template
