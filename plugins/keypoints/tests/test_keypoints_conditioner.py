"""The keypoints conditioner: its contract, its maps against the Gaussian, and every kind of bad point."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from ldmkit_keypoints.conditioner import KeypointsConditioner
from PIL import Image

from ldmkit.conditioning import Canvas
from ldmkit.data import Field
from ldmkit.errors import DataError, RecipeError, UsageError
from ldmkit.testing import check_conditioner

NAMES = ["left_eye", "right_eye", "nose"]
TWO = [[0, 0.25, 0.5], [2, 0.5, 0.75]]


def canvas(size=(64, 64), picture=None) -> Canvas:
    grid = (size[0] // 8, size[1] // 8)
    return Canvas(size, grid, torch.device("cpu"), torch.float32, lambda images: images, picture=picture)


def made(**options) -> KeypointsConditioner:
    return KeypointsConditioner(**{"points": NAMES, "width": 8, **options}).eval()


def encoded(conditioner, *given, on=None):
    rows = [conditioner.prepare({"keypoints": points}) for points in given]
    return conditioner.encode(conditioner.collate(rows), on or canvas())


@pytest.mark.parametrize("port", ["tokens", "concat"])
def test_contract(port):
    others = [{"keypoints": torch.zeros(0, 3)}, {"keypoints": torch.tensor([[1, 1.0, 1.0]])}]
    conditioner = KeypointsConditioner(points=NAMES, width=8, port=port)
    check_conditioner(conditioner, {"keypoints": torch.tensor(TWO)}, others=others, value='{"nose": [0.5, 0.5]}')


def test_importing_the_plugin_loads_no_torch():
    code = "import sys, ldmkit_keypoints; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_maps_are_gaussians_of_their_points():
    maps = encoded(made(port="concat", spread=0.1), [[2, 0.5, 0.75]]).concat[0]
    assert maps.shape == (4, 8, 8)
    assert (maps[:2] == 0).all()
    assert (maps[3] == 1).all()
    for row, column in ((0, 0), (5, 3), (7, 7)):
        apart = ((row + 0.5) / 8 - 0.75) ** 2 + ((column + 0.5) / 8 - 0.5) ** 2
        assert float(maps[2, row, column]) == pytest.approx(math.exp(-apart / (2 * 0.1**2)), rel=1e-4, abs=1e-12)


def test_two_points_of_one_name_are_both_on_its_map():
    conditioner = made(port="concat")
    both = encoded(conditioner, [[0, 0.1, 0.1], [0, 0.9, 0.9]]).concat[0, 0]
    each = [encoded(conditioner, [point]).concat[0, 0] for point in ([0, 0.1, 0.1], [0, 0.9, 0.9])]
    torch.testing.assert_close(both, torch.maximum(*each))


def test_on_a_larger_canvas_points_lie_on_the_image():
    maps = encoded(made(port="concat"), [[0, 0.5, 0.5]], on=canvas((64, 128), picture=(64, 64))).concat[0, 0]
    assert maps[:, 8:].max() < 1e-6
    torch.testing.assert_close(maps[:, :8], encoded(made(port="concat"), [[0, 0.5, 0.5]]).concat[0, 0])
    tokens = made()
    half = encoded(tokens, [[0, 0.5, 0.5]], on=canvas((64, 128), picture=(64, 64))).tokens
    torch.testing.assert_close(half, encoded(tokens, [[0, 0.25, 0.5]], on=canvas((64, 128))).tokens)


def test_a_token_is_its_name_and_what_its_place_says():
    conditioner = made()
    conditioner.place[2].weight.data.zero_()
    conditioner.place[2].bias.data.fill_(0.5)
    answer = encoded(conditioner, TWO, [])
    assert answer.mask.tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(answer.tokens[0], conditioner.kinds.weight[[0, 2]] + 0.5)
    torch.testing.assert_close(
        answer.tokens[1, 0], conditioner.kinds.weight[3]
    )  # a face without a point is a condition
    assert (answer.tokens[1, 1] == 0).all()


def test_fit_takes_what_the_source_knows_or_counts():
    known = {"keypoints": Field("keypoints", 3, tuple(NAMES))}
    assert KeypointsConditioner.fit({}, iter([]), known) == {"points": NAMES}
    assert KeypointsConditioner.fit({}, [{"keypoints": TWO}, {"keypoints": None}]) == {"points": 3}
    with pytest.raises(DataError, match="no sample has `keypoints`"):
        KeypointsConditioner.fit({}, [{"keypoints": None}])
    with pytest.raises(DataError, match="have the keypoints nose, and `points` lists left_eye, right_eye"):
        KeypointsConditioner.fit({"points": NAMES[:2]}, iter([]), known)


def test_points_are_matched_by_name():
    conditioner = made()
    conditioner.known_fields = {"keypoints": Field("keypoints", 2, ("nose", "left_eye"))}
    found = conditioner.prepare({"keypoints": [[0, 0.1, 0.2], [1, 0.3, 0.4]]})["points"]
    torch.testing.assert_close(found, torch.tensor([[0, 0.3, 0.4], [2, 0.1, 0.2]]))


def test_the_forms_of_points_are_one():
    conditioner = made()
    for value in (
        '{"left_eye": [0.25, 0.5], "right_eye": null, "nose": [0.5, 0.75]}',
        {"nose": (0.5, 0.75), "left_eye": (0.25, 0.5)},
        [["left_eye", 0.25, 0.5], ["nose", 0.5, 0.75]],
        torch.tensor(TWO),
    ):
        torch.testing.assert_close(conditioner.from_user(value, (64, 64))["points"], torch.tensor(TWO))
    assert conditioner.from_user("{}", (64, 64))["points"].shape == (0, 3)


def test_lists_hold_one_value_an_image_or_are_one():
    many = made().many
    assert many([{"nose": [0.1, 0.1]}, {}])
    assert many([[["nose", 0.1, 0.1]], []])
    assert not many([["nose", 0.1, 0.1]])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "is no JSON"),
        ({"nose": [0.5]}, "'nose' lies at"),
        ({"noze": [0.5, 0.5]}, r"there is no point 'noze'; the points are left_eye.*\n  did you mean 'nose'"),
        ({"nose": [50, 50]}, r"the keypoint nose lies at \(50, 50\), outside \[0, 1\]"),
        ({"nose": [0.5, float("nan")]}, "not finite"),
        ([["nose", 0.5]], "point 1 has 2 values"),
        ([[9, 0.5, 0.5]], "the keypoint 9 is none: there are 3"),
        ("4", "not int"),
    ],
)
def test_bad_points(value, words):
    with pytest.raises(UsageError, match=f"(?s){words}"):
        made().from_user(value, (64, 64))


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([[0, 1.5, 0.2]], "left_eye lies at"),
        ([[0, math.nan, 0.2]], "not finite"),
        ([[0, 0.1]], r"keypoints are \(n, 3\); given: \(1, 2\)"),
        ("points", "no numbers"),
    ],
)
def test_bad_points_of_the_data(points, words):
    with pytest.raises(DataError, match=words):
        made().prepare({"keypoints": points})


@pytest.mark.parametrize(
    ("points", "words"), [(None, "not known"), (0, "at least one"), (["a", "a"], "'a' more than once")]
)
def test_impossible_options(points, words):
    with pytest.raises(RecipeError, match=words):
        made(points=points)


def test_the_preview_has_a_dot_where_the_point_is():
    conditioner = made()
    shown = conditioner.preview(conditioner.prepare({"keypoints": [[0, 0.5, 0.25]]}))
    assert isinstance(shown, Image.Image)
    assert shown.getpixel((64, 32)) != shown.getpixel((2, 2))
