"""What scenes have besides image, caption, map and class: compared with the shapes that they follow from."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from ldmkit.data import Dataset
from ldmkit.data.sources.scenes import derived
from ldmkit.data.sources.scenes.drawing import Shape, coverage
from ldmkit.data.sources.scenes.source import ScenesSource
from ldmkit.fields import FORMS

SOURCE = ScenesSource(shapes=(1, 4), kinds=ScenesSource.KINDS)


def test_what_was_drawn_before_is_drawn_still() -> None:
    words = "\n".join(f"{SOURCE[i]['caption']} {SOURCE[i]['label']}" for i in range(64))
    assert hashlib.sha256(words.encode()).hexdigest()[:16] == "9cdfd36c3a7940aa"
    means = [float(np.asarray(SOURCE[i]["image"], dtype=np.float64).mean()) for i in range(4)]
    assert means == pytest.approx(
        [98.702, 215.117, 180.079, 212.466], abs=0.01
    )  # a pixel may round otherwise on another CPU


def test_every_field_is_described_and_there() -> None:
    fields, sample = SOURCE.info().fields, SOURCE[5]
    assert set(fields) == set(sample)
    assert {field.kind for field in fields.values()} <= set(FORMS)
    again = SOURCE[5]
    for name in ("mask", "reference"):
        assert np.array_equal(np.asarray(sample[name]), np.asarray(again[name]))


def test_numbers_and_attributes_are_those_of_the_shapes() -> None:
    shapes = [Shape("circle", "red", 0.2, 0.4, 0.1), Shape("square", "blue", 0.6, 0.8, 0.2)]
    # a circle of radius 0.1; a square whose half diagonal is 1.24 * 0.2, of the area 2 * 0.248^2
    covered = np.pi * 0.01 + 2 * 0.248**2
    expected = {"shapes": 2.0, "largest": 0.2, "covered": covered, "center_x": 0.4, "center_y": 0.6}
    assert derived.numbers(shapes) == pytest.approx(expected)
    assert derived.attributes(shapes, "sand") == ("blue", "circle", "red", "sand", "square")
    assert derived.keypoints(shapes, ("blue", "green", "red")).tolist() == [
        pytest.approx([0, 0.6, 0.8]),
        pytest.approx([2, 0.2, 0.4]),
    ]


def test_the_columns_and_the_field_numbers_agree() -> None:
    for index in range(8):
        sample = SOURCE[index]
        names = SOURCE.info().fields["numbers"].names
        assert sample["numbers"].tolist() == pytest.approx([sample[name] for name in names])
        shares = np.asarray(sample["map"]) >= len(SOURCE.grounds)
        assert sample["covered"] == pytest.approx(shares.mean(), abs=0.03)


def test_depth_is_the_ground_and_the_shapes_before_it() -> None:
    shape = Shape("circle", "red", 0.5, 0.5, 0.35)
    near = np.asarray(derived.depth([shape], 64), dtype=np.float64) / 255
    assert near[0, 0] == pytest.approx(0.1, abs=1 / 255)
    assert near[63, 63] == pytest.approx(0.5, abs=1 / 255)
    assert near[32, 32] == 1.0  # the largest shape there is
    assert (np.diff(near[:, 0]) >= 0).all()


def test_edges_are_the_outline_of_a_square() -> None:
    lines = np.asarray(derived.edges([Shape("square", "red", 0.5, 0.5, 0.25)], 64)) > 0
    inside = coverage("square", 0.5, 0.5, 0.25, 64) >= 0.5
    side = int(np.sqrt(inside.sum()))
    assert inside.sum() == side**2
    assert lines.sum() == 4 * side - 4
    assert not (lines & ~inside).any()


def test_a_mask_covers_one_shape() -> None:
    for index in range(16):
        sample = SOURCE[index]
        white = np.asarray(sample["mask"]) == 255
        assert set(np.unique(np.asarray(sample["mask"]))) <= {0, 255}
        rows, columns = np.nonzero(white)
        assert white.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # a box
        inside = [
            left * 64 >= columns.min() and right * 64 <= columns.max() + 1 for _, left, _, right, _ in sample["boxes"]
        ]
        assert any(inside)


def test_a_reference_shows_a_shape_of_the_image() -> None:
    sample = SOURCE[2]
    assert sample["reference"].size == (32, 32)
    middle = np.asarray(sample["reference"], dtype=float)[16, 16]
    at_points = [np.asarray(sample["image"], dtype=float)[int(y * 64), int(x * 64)] for _, x, y in sample["keypoints"]]
    assert min(np.abs(middle - colour).max() for colour in at_points) < 30


def test_keypoints_and_edges_follow_the_view() -> None:
    source = ScenesSource(shapes=(1, 1), kinds=("circle",), count=8)
    dataset = Dataset(source, size=32, crop="random", flip=True, views=8, portion=(0.7, 1.0))
    seen = 0
    for item in range(len(dataset)):
        sample = dataset.sample(item)
        assert sample["edges"].shape == sample["depth"].shape == sample["mask"].shape == (1, 32, 32)
        near = torch.where(
            sample["depth"][0] > 0.3
        )  # the ground's are below 0, a shape's nearness is at least 0.5 of 1
        if min(axis.min() for axis in near) > 0 and max(axis.max() for axis in near) < 31:  # whole inside
            (_, x, y) = sample["keypoints"][0].tolist()
            assert near[0].float().mean() == pytest.approx(y * 32 - 0.5, abs=0.5)
            assert near[1].float().mean() == pytest.approx(x * 32 - 0.5, abs=0.5)
            seen += 1
    assert seen > 8


def test_an_image_is_the_same_whatever_was_read_before() -> None:
    first, second = SOURCE[9], SOURCE[9]
    for name in second:
        second[name]
    assert np.array_equal(np.asarray(first["image"]), np.asarray(second["image"]))
    assert isinstance(first["reference"], Image.Image)
