"""Views and the `Dataset`: geometry against closed forms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldmkit.data import BadSampleError, Dataset, Field, Info, MissingFieldError, Sample, Source
from ldmkit.errors import DataError
from ldmkit.images.pixels import area_resized
from ldmkit.images.view import View, draw_view
from ldmkit.random import generator


def ramp(height: int, width: int) -> Image.Image:
    """Red grows by 1 a column, green by 1 a row: where a pixel came from can be read off it."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], -1))


class Ramps(Source):
    """Three pictures of different sizes with everything that can lie on them."""

    def __init__(self, *, bad: tuple[int, ...] = (), map_size: tuple[int, int] | None = None) -> None:
        self.bad, self.map_size, self.sizes = bad, map_size, ((90, 120), (64, 64), (200, 80))

    def info(self) -> Info:
        fields = {
            "image": Field("image"),
            "map": Field("map", 256),
            "boxes": Field("boxes", 3),
            "caption": Field("text"),
        }
        return Info(len(self.sizes), fields | {"depth": Field("other"), "reference": Field("image")})

    def split(self, part: str) -> Source:
        return self

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        height, width = self.sizes[index]

        def image() -> Image.Image:
            if index in self.bad:
                raise BadSampleError(f"{index}.png", "broken")
            return ramp(height, width)

        rows, columns = np.mgrid[: (self.map_size or (height, width))[0], : (self.map_size or (height, width))[1]]
        return Sample(
            {
                "image": image,
                "map": lambda: columns.astype(np.int32),
                "depth": lambda: rows.astype(np.float32),
                "boxes": lambda: [(2, 0.25, 0.5, 0.5, 1.0)],
                "caption": lambda: None,
                "reference": lambda: ramp(10, 20),
            },
            name=f"ramp {index}",
            origins={"image": f"{index}.png", "map": f"maps/{index}.png"},
        )


def test_a_view_at_scale_one_is_a_cut() -> None:
    view = View((90, 120), (30.0, 10.0, 62.0, 42.0), (32, 32))
    expected = torch.from_numpy(np.array(ramp(90, 120))[10:42, 30:62].transpose(2, 0, 1)).float() / 127.5 - 1
    assert torch.equal(view.image(ramp(90, 120)), expected)
    ids = np.mgrid[:90, :120][1]
    assert torch.equal(view.ids(ids), torch.from_numpy(ids[10:42, 30:62]))
    mirrored = View(view.picture, view.window, view.size, flip=True)
    assert torch.equal(mirrored.image(ramp(90, 120)), expected.flip(-1))
    assert torch.equal(mirrored.ids(ids), torch.from_numpy(ids[10:42, 30:62]).flip(-1))


@pytest.mark.parametrize("seed", range(6))
def test_everything_goes_through_the_same_draw(seed: int) -> None:
    dataset = Dataset(
        Ramps(), size=(32, 48), crop="random", flip=True, views=4, seed=seed, aligned=frozenset({"depth"})
    )
    for item in range(len(dataset)):
        sample = dataset.sample(item)
        columns, rows = (sample["image"][:2] + 1) * 127.5
        # an antialiased ramp is the ramp, away from the border
        inner = (slice(3, -3), slice(3, -3))
        assert (columns - sample["map"])[inner].abs().max() <= 2.6  # nearest neighbour of up to 2.5 pixels a pixel
        assert (rows - sample["depth"][0])[inner].abs().max() <= 0.75  # rounded to 8 bits
        assert sample["depth"].shape == (1, 32, 48)
        assert sample["map"].dtype == torch.int64


def test_no_id_appears_that_was_not_there() -> None:
    ids = np.random.default_rng(0).choice([3, 7, 255], size=(77, 91))
    for position in range(20):
        view = draw_view(
            (77, 91), (32, 32), crop="random", flip=True, zoom=(0.3, 3), generator=generator(0, "v", position)
        )
        assert set(view.ids(ids).unique().tolist()) <= {3, 7, 255}


def test_boxes_follow_the_view() -> None:
    boxes = np.array([[1, 0.25, 0.5, 0.5, 1.0], [0, 0.0, 0.0, 0.1, 0.1]], dtype=np.float32)
    view = View((100, 100), (20.0, 40.0, 60.0, 80.0), (64, 64), flip=False)
    # x: (25 - 20) / 40, (50 - 20) / 40; y: (50 - 40) / 40, and 100 is cut to the window; the other one lies outside
    assert torch.allclose(view.boxes(boxes), torch.tensor([[1, 0.125, 0.25, 0.75, 1.0]]))
    mirrored = View(view.picture, view.window, view.size, flip=True)
    assert torch.allclose(mirrored.boxes(boxes), torch.tensor([[1, 0.25, 0.25, 0.875, 1.0]]))
    assert view.boxes(np.zeros((0, 5))).shape == (0, 5)


@pytest.mark.parametrize("picture", [(1, 1), (10000, 1), (1, 10000), (63, 64), (64, 64), (300, 500)])
@pytest.mark.parametrize("zoom", [None, (1.0, 2.5), (0.5, 0.5)])
def test_windows_lie_inside_the_picture(picture: tuple[int, int], zoom: tuple[float, float] | None) -> None:
    for position in range(5):
        view = draw_view(picture, (64, 64), crop="random", zoom=zoom, generator=generator(1, "v", position))
        left, top, right, bottom = view.window
        assert left >= 0
        assert top >= 0
        assert right <= picture[1] + 1e-6
        assert bottom <= picture[0] + 1e-6
        if zoom and min(picture) >= 160:
            assert 64 * zoom[0] - 1e-6 <= right - left <= 64 * zoom[1] + 1e-6
        image = view.image(Image.new("RGB", picture[::-1], (10, 20, 30)))
        assert image.shape == (3, 64, 64)
        assert torch.allclose(image[:, 5, 5], torch.tensor([10, 20, 30]) / 127.5 - 1)


def test_a_portion_is_the_papers_crop() -> None:
    """`crop side = min(h, w) * U[0.5, 1]`, anywhere in the picture, in whole pixels."""
    sides, corners = [], []
    for position in range(400):
        view = draw_view((300, 400), (64, 64), crop="random", portion=(0.5, 1.0), generator=generator(2, "v", position))
        left, top, right, bottom = view.window
        assert right - left == pytest.approx(bottom - top)
        assert right - left == pytest.approx(round(right - left))
        sides.append((right - left) / 300)
        corners.append((left / (400 - (right - left)), top / max(300 - (bottom - top), 1)))
    assert min(sides) >= 0.5 - 1 / 300
    assert max(sides) <= 1.0
    # uniform: mean and standard deviation of U[0.5, 1] and U[0, 1], within five standard errors
    assert np.mean(sides) == pytest.approx(0.75, abs=5 * 0.1443 / 20)
    assert np.std(sides) == pytest.approx(0.5 / math.sqrt(12), abs=0.02)
    assert np.mean(corners, axis=0) == pytest.approx([0.5, 0.5], abs=5 * 0.2887 / 20)
    fixed = draw_view((300, 400), (64, 64), portion=(0.5, 1.0))
    assert fixed.window == (125.0, 75.0, 275.0, 225.0)
    wide = draw_view((100, 400), (32, 64), portion=(0.5, 0.5))
    assert wide.window == (150.0, 25.0, 250.0, 75.0)


def test_area_is_the_mean_over_what_a_pixel_covers() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(24, 36, 3), dtype=np.uint8)
    whole = area_resized(Image.fromarray(pixels), (8, 12), (0.0, 0.0, 36.0, 24.0))
    means = pixels.reshape(8, 3, 12, 3, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(whole) - means).max() <= 0.5
    # parts of pixels count by their share: 5 columns to 2, each 2.5 wide
    row = np.array([[0, 100, 200, 100, 0]], dtype=np.uint8)
    assert np.asarray(area_resized(Image.fromarray(row), (1, 2), (0.0, 0.0, 5.0, 1.0))).tolist() == [[80, 80]]
    assert np.asarray(area_resized(Image.fromarray(row), (1, 1), (0.5, 0.0, 2.5, 1.0))).tolist() == [[100]]
    dataset = Dataset(Ramps(), size=32, resample="area", views=3, portion=(0.5, 1.0), crop="random")
    sample = dataset.sample(1)
    columns = (sample["image"][0] + 1) * 127.5
    assert (columns - sample["map"]).abs().max() <= 1.6  # the map is nearest: within a window's half


def test_without_options_it_is_the_largest_centre_square() -> None:
    view = draw_view((100, 300), (64, 64))
    assert view.window == (100.0, 0.0, 200.0, 100.0)


def test_views_are_fixed_by_their_item_and_fresh_ones_by_the_epoch() -> None:
    fixed = Dataset(Ramps(), size=32, crop="random", zoom=(1, 1.5), views=5)
    assert len(fixed) == 15
    assert fixed.finite
    assert torch.equal(fixed.sample(7, 0)["image"], fixed.sample(7, 3)["image"])
    assert not torch.equal(fixed.sample(7)["image"], fixed.sample(8)["image"])
    fresh = Dataset(Ramps(), size=32, crop="random", zoom=(1, 1.5), views=None)
    assert len(fresh) == 3
    assert not fresh.finite
    assert not torch.equal(fresh.sample(1, 0)["image"], fresh.sample(1, 1)["image"])
    again = Dataset(Ramps(), size=32, crop="random", zoom=(1, 1.5), views=None)
    assert torch.equal(fresh.sample(1, 1)["image"], again.sample(1, 1)["image"])


def test_one_channel_is_the_luminance() -> None:
    grey = Dataset(Ramps(), size=64, channels=1).sample(1)["image"]
    expected = np.array(ramp(64, 64).convert("L"), dtype=np.float32) / 127.5 - 1
    assert torch.equal(grey, torch.from_numpy(expected)[None])


def test_a_reference_picture_keeps_its_size() -> None:
    sample = Dataset(Ramps(), size=32).sample(0)
    assert sample["reference"].shape == (3, 10, 20)
    assert sample["caption"] is None


def test_fields_load_on_access_and_once() -> None:
    calls: list[str] = []
    sample = Sample({"image": lambda: calls.append("image"), "caption": lambda: calls.append("caption")}, name="s")
    assert "image" in sample
    assert list(sample) == ["image", "caption"]
    assert not calls
    assert sample["caption"] is None
    sample["caption"]
    assert calls == ["caption"]
    with pytest.raises(DataError, match=r"no field 'mask'; it has 'image', 'caption'"):
        sample["mask"]
    with pytest.raises(MissingFieldError):
        sample["mask"]
    assert sample.get("mask") is None


def test_sizes_that_differ_are_an_error_with_both_sizes_and_paths() -> None:
    sample = Dataset(Ramps(map_size=(90, 121)), size=32).sample(0)
    with pytest.raises(DataError) as error:
        sample["map"]
    for part in ("90 x 120", "90 x 121", "0.png", "maps/0.png"):
        assert part in str(error.value)


def test_a_picture_that_cannot_be_read_is_replaced_by_the_next_one() -> None:
    dataset = Dataset(Ramps(bad=(1,)), size=32, views=2)
    stand_in = dataset.readable(3)
    assert stand_in.name == "ramp 2"
    assert [(p.path, p.reason) for p in dataset.problems] == [("1.png", "broken")]
    with pytest.raises(BadSampleError, match="broken"):
        dataset.sample(2)["image"]
    with pytest.raises(DataError, match="none of the 3 pictures"):
        Dataset(Ramps(bad=(0, 1, 2)), size=32).readable(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "channels is 2"),
        ({"views": 0}, "views is 0"),
        ({"zoom": (2.0, 1.0)}, "zoom is"),
        ({"portion": (0.5, 1.5)}, "portion is"),
        ({"portion": (0.5, 1.0), "zoom": (1.0, 2.0)}, "zoom and portion both"),
        ({"resample": "lanczos"}, "resample is 'lanczos'"),
        ({"crop": "corner"}, "crop is 'corner'"),
        ({"size": (0, 4)}, "size is 0 x 4"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset(Ramps(), **{"size": 32, **options})


def test_items_outside_are_an_error() -> None:
    with pytest.raises(DataError, match="outside"):
        Dataset(Ramps(), size=32).sample(3)


def test_keypoints_follow_the_view_and_left_is_right_in_a_mirror() -> None:
    names = ("left_eye", "nose", "right_eye", "left", "LeftHand", "RightHand", "l_ear", "r_ear", "bright", "Copyright")
    mirrored = Field("keypoints", names=names).mirrored()
    assert mirrored == (2, 1, 0, 3, 5, 4, 7, 6, 8, 9)  # "left" has no counterpart; the last two only contain "right"
    points = np.array([[0, 0.25, 0.5], [1, 0.5, 0.6], [2, 0.9, 0.5]], dtype=np.float32)
    view = View((100, 100), (20.0, 40.0, 60.0, 80.0), (64, 64), flip=False)
    # (25 - 20) / 40, (50 - 40) / 40; (50 - 20) / 40, (60 - 40) / 40; 90 lies outside
    assert torch.allclose(view.keypoints(points), torch.tensor([[0, 0.125, 0.25], [1, 0.75, 0.5]]))
    flipped = View(view.picture, view.window, view.size, flip=True)
    assert torch.allclose(flipped.keypoints(points, mirrored), torch.tensor([[2, 0.875, 0.25], [1, 0.25, 0.5]]))
    assert torch.allclose(flipped.keypoints(points)[:, 0], torch.tensor([0.0, 1.0]))
    assert view.keypoints(np.zeros((0, 3))).shape == (0, 3)
    assert Field("keypoints", 4).mirrored() is None


def test_words_are_all_kept_and_of_captions_one_is_drawn() -> None:
    class Listed(Ramps):
        def info(self) -> Info:
            return Info(3, {"image": Field("image"), "words": Field("words"), "caption": Field("text")})

        def __getitem__(self, index: int) -> Mapping[str, Any]:
            return {"image": ramp(64, 64), "words": ["red", "old"], "caption": ["a b", "c d"]}

    sample = Dataset(Listed(), size=32).sample(0)
    assert sample["words"] == ["red", "old"]
    assert sample["caption"] in ("a b", "c d")
