"""The layout conditioner: its contract, its tokens against what they are made of, and every kind of bad box."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from ldmkit_layout import boxes as rows
from ldmkit_layout.conditioner import LayoutConditioner
from PIL import Image

from ldmkit.conditioning import Canvas
from ldmkit.data import Field
from ldmkit.errors import DataError, RecipeError, UsageError
from ldmkit.testing import check_conditioner

NAMES = ["cat", "dog", "tree"]
TWO = [[0, 0.1, 0.2, 0.5, 0.9], [1, 0.4, 0.4, 0.6, 0.6]]


def canvas() -> Canvas:
    return Canvas((64, 64), (8, 8), torch.device("cpu"), torch.float32, lambda images: images)


def made(**options) -> LayoutConditioner:
    return LayoutConditioner(**{"classes": NAMES, "width": 8, "heads": 2, **options}).eval()


@pytest.mark.parametrize("form", ["boxes", "paper"])
def test_contract(form):
    others = [{"boxes": torch.zeros(0, 5)}, {"boxes": torch.tensor([[2, 0.0, 0.0, 1.0, 1.0]])}]
    conditioner = LayoutConditioner(classes=NAMES, width=8, heads=2, form=form)
    check_conditioner(conditioner, {"boxes": torch.tensor(TWO)}, others=others, value='[["dog", 0.1, 0.2, 0.5, 0.9]]')


def test_importing_the_plugin_loads_no_torch():
    code = "import sys, ldmkit_layout; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# tokens


def test_the_papers_form_is_class_and_two_corners_a_box():
    conditioner = made(form="paper", depth=0, sections=11)
    prepared = conditioner.collate([conditioner.prepare({"boxes": [[1, 0.1, 0.2, 0.5, 0.9]]})])
    answer = conditioner.encode(prepared, canvas())
    assert answer.mask.tolist() == [[True] * 3]
    # a coordinate c is the cell round(c * (sections - 1)); a corner is y * sections + x
    corners = [2 * 11 + 1, 9 * 11 + 5]
    expected = torch.stack([conditioner.kinds.weight[1], *(conditioner.cells.weight[corner] for corner in corners)])
    torch.testing.assert_close(answer.tokens[0], expected + conditioner.places.weight[:3])


def test_a_box_is_its_class_and_what_its_sides_say():
    conditioner = made(depth=0)
    conditioner.sides[2].weight.data.zero_()
    conditioner.sides[2].bias.data.fill_(0.25)
    prepared = conditioner.collate([conditioner.prepare({"boxes": TWO})])
    tokens = conditioner.encode(prepared, canvas()).tokens[0]
    torch.testing.assert_close(tokens, conditioner.kinds.weight[[0, 1]] + 0.25)


def test_fourier_features_are_sines_and_cosines_of_doubling_rates():
    from ldmkit_layout.conditioner import FREQUENCIES, _fourier

    found = _fourier(torch.tensor([0.3, 0.0, 1.0, 0.5]))
    assert found.shape == (4 + 8 * FREQUENCIES,)
    assert found[4 + 1] == pytest.approx(math.sin(2 * math.pi * 0.3), abs=1e-6)
    assert found[4 + 4 * FREQUENCIES + 2] == pytest.approx(math.cos(4 * math.pi * 0.3), abs=1e-6)


def test_the_order_of_boxes_says_nothing():
    conditioner = made()
    first, second = (conditioner.prepare({"boxes": order})["boxes"] for order in (TWO, TWO[::-1]))
    assert torch.equal(first, second)


@pytest.mark.parametrize("form", ["boxes", "paper"])
def test_boxes_of_an_image_that_fills_half_of_its_canvas_lie_in_that_half(form):
    conditioner = made(form=form)
    whole = Canvas((64, 128), (8, 16), torch.device("cpu"), torch.float32, lambda images: images)
    half = Canvas((64, 128), (8, 16), torch.device("cpu"), torch.float32, lambda images: images, picture=(64, 64))
    wide, narrow = (conditioner.collate([{"boxes": torch.tensor([[0, 0.2, 0.1, r, 0.5]])}]) for r in (0.8, 0.4))
    narrow["boxes"][..., 1] = 0.1
    torch.testing.assert_close(conditioner.encode(wide, half).tokens, conditioner.encode(narrow, whole).tokens)


def test_an_empty_layout_is_one_token_and_no_null():
    conditioner = made(depth=0)
    prepared = conditioner.collate([conditioner.prepare({"boxes": torch.zeros(0, 5)})] * 2)
    answer = conditioner.encode(prepared, canvas())
    assert answer.mask.tolist() == [[True], [True]]
    torch.testing.assert_close(answer.tokens[0, 0], conditioner.kinds.weight[3])
    assert not torch.equal(answer.tokens[:1], conditioner.null(canvas()).tokens)


def test_of_too_many_the_largest_stay_and_slivers_go():
    conditioner = made(most=2, least=0.01)
    many = [[0, 0.0, 0.0, 0.3, 0.3], [1, 0.0, 0.0, 0.5, 0.5], [2, 0.0, 0.0, 0.05, 0.05], [2, 0.0, 0.0, 0.4, 0.4]]
    assert conditioner.prepare({"boxes": many})["boxes"][:, 0].tolist() == [1, 2]
    assert made(least=0.01).prepare({"boxes": many})["boxes"].shape == (3, 5)


# classes


def test_fit_takes_what_the_source_knows_or_counts():
    known = {"boxes": Field("boxes", 2, ("cat", "dog"))}
    assert LayoutConditioner.fit({}, iter([]), known) == {"classes": ["cat", "dog"]}
    assert LayoutConditioner.fit({}, [{"boxes": TWO}, {"boxes": None}]) == {"classes": 2}
    assert LayoutConditioner.fit({"classes": 9}, iter([]), known) == {}
    with pytest.raises(DataError, match="no sample has `boxes`"):
        LayoutConditioner.fit({}, [{"boxes": None}])
    with pytest.raises(DataError, match="boxes of the classes dog, and `classes` lists cat"):
        LayoutConditioner.fit({"classes": ["cat"]}, iter([]), known)


def test_classes_are_matched_by_name():
    conditioner = made()
    conditioner.known_fields = {"boxes": Field("boxes", 2, ("tree", "cat"))}
    found = conditioner.prepare({"boxes": [[0, 0.0, 0.0, 0.9, 0.9], [1, 0.0, 0.0, 0.5, 0.5]]})["boxes"]
    assert found[:, 0].tolist() == [2.0, 0.0]


# what a person gives


def test_the_forms_of_a_layout_are_one():
    conditioner = made()
    text = '[["cat", 0.1, 0.2, 0.5, 0.9], ["dog", 0.4, 0.4, 0.6, 0.6]]'
    for value in (text, [("cat", 0.1, 0.2, 0.5, 0.9), ("dog", 0.4, 0.4, 0.6, 0.6)], TWO, torch.tensor(TWO)):
        torch.testing.assert_close(conditioner.from_user(value, (64, 64))["boxes"], torch.tensor(TWO))
    assert conditioner.from_user("[]", (64, 64))["boxes"].shape == (0, 5)


def test_lists_hold_one_layout_an_image_or_are_one():
    many = made().many
    assert not many([["cat", 0.1, 0.2, 0.5, 0.9]])
    assert many([[["cat", 0.1, 0.2, 0.5, 0.9]], []])
    assert many(["[]", "[]"])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('[["cat", 0.1', "is no JSON"),
        ([["cat", 0.1, 0.2, 0.5]], "box 1 has 4 values; five are needed"),
        ([["cat", 0.1, 0.2, "0.5", 0.9]], "box 1 has the sides"),
        (
            [["cat", 10, 20, 50, 90]],
            r"outside \[0, 1\]\n  sides are shares of the image's width and height, not pixels",
        ),
        ([["cat", 0.5, 0.2, 0.1, 0.9]], "left < right and top < bottom are needed"),
        ([["cat", 0.1, 0.2, float("nan"), 0.9]], "not finite"),
        ([["dgo", 0.1, 0.2, 0.5, 0.9]], r"the class 'dgo'.*the classes are cat, dog, tree\n  did you mean 'dog'"),
        ([[7, 0.1, 0.2, 0.5, 0.9]], "of the class 7; classes are 0 to 2"),
        ("3", "a layout is a list of boxes, not int"),
        ([["cat", 0.1, 0.2, 0.5, 0.9], "dog"], "box 2 has str"),
    ],
)
def test_bad_layouts(value, words):
    with pytest.raises(UsageError, match=f"(?s){words}"):
        made().from_user(value, (64, 64))


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([[0, 0.1, 0.2, 1.5, 0.9]], "outside"),
        ([[5, 0.1, 0.2, 0.5, 0.9]], "of the class 5"),
        ([[0, math.nan, 0.2, 0.5, 0.9]], "not finite"),
        ([[0, 0.1, 0.2]], r"boxes are \(n, 5\); given: \(1, 3\)"),
        ("boxes", "no numbers"),
    ],
)
def test_bad_boxes_of_the_data(boxes, words):
    with pytest.raises(DataError, match=words):
        made().prepare({"boxes": boxes})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": None}, "not known"),
        ({"classes": 0}, "at least one"),
        ({"classes": ["a", "a"]}, "'a' more than once"),
        ({"width": 9}, "which 2 heads do not divide"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(RecipeError, match=words):
        made(**options)


def test_the_preview_draws_a_frame_where_the_box_is():
    conditioner = made()
    shown = conditioner.preview(conditioner.prepare({"boxes": [[0, 0.25, 0.25, 0.75, 0.75]]}))
    assert isinstance(shown, Image.Image)
    frame = (round(0.25 * 127), 90)
    assert shown.getpixel(frame) != shown.getpixel((2, 2)) == shown.getpixel((80, 80))
    assert rows.some([f"c{i}" for i in range(14)]).endswith("and 2 more")
