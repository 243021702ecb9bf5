"""Drawn colours: against closed forms, and against torchvision's ColorJitter, whose terms they are given in."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldmkit.assembly import datasets
from ldmkit.data import Dataset, Field, Info, Jitter, Sample, Source
from ldmkit.data.jitter import _turned
from ldmkit.errors import DataError, RecipeError
from ldmkit.random import generator
from ldmkit.recipe import Recipe


class Noise(Source):
    """Colour noise with a map of its red channel lying on it."""

    def __init__(self, *, count: int = 3) -> None:
        self.count = count

    def info(self) -> Info:
        return Info(self.count, {"image": Field("image"), "map": Field("map", 256)})

    def split(self, part: str) -> Source:
        return self

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        return Sample({"image": lambda: Image.fromarray(pixels), "map": lambda: pixels[..., 0].astype(np.int32)})


def flat(*colour: int) -> Image.Image:
    return Image.new("RGB", (4, 4), colour)


def first(image: Image.Image) -> tuple[int, ...]:
    return tuple(np.asarray(image)[0, 0].tolist())


def test_a_turn_of_the_colour_circle_is_one_of_hsv() -> None:
    for colour in ((200, 40, 90), (17, 230, 66), (128, 128, 128), (255, 0, 0)):
        for turn in (0, 43, -85, 128):
            hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in colour))
            expected = [255 * level for level in colorsys.hsv_to_rgb((hue + turn / 256) % 1, saturation, value)]
            assert np.abs(np.asarray(first(_turned(flat(*colour), turn))) - expected).max() < 7  # 256 hues


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_does_what_torchvision_does_for_the_same_factor(name: str) -> None:
    from torchvision.transforms import functional

    image = Noise()[0]["image"]
    strength = 0.4
    draw = 2 * torch.rand(4, generator=generator(0, "test", 1))[list(Jitter.__dataclass_fields__).index(name)] - 1
    factor = float(draw) * strength if name == "hue" else 1 + float(draw) * strength
    expected = np.asarray(getattr(functional, f"adjust_{name}")(image, factor)).astype(int)
    found = np.asarray(Jitter(**{name: strength}).image(image, generator(0, "test", 1))).astype(int)
    assert np.abs(found - expected).mean() < (1.5 if name == "hue" else 0.5)  # one level of hue is up to six of colour
    assert np.abs(found - np.asarray(image)).mean() > 5


def test_grey_pictures_keep_having_no_colour() -> None:
    grey = Image.new("L", (4, 4), 90)
    assert first(Jitter(hue=0.5, saturation=1.0).image(grey.convert("RGB"), generator(0, "g", 0))) == (90, 90, 90)
    assert np.asarray(Jitter(hue=0.5, saturation=1.0).image(grey, generator(0, "g", 0)))[0, 0] == 90


def test_a_view_keeps_its_colours_its_window_and_what_lies_on_it() -> None:
    plain = Dataset(Noise(), size=16, crop="random", views=4, seed=3)
    jittered = Dataset(Noise(), size=16, crop="random", views=4, seed=3, jitter=Jitter(hue=0.5))
    again = Dataset(Noise(), size=16, crop="random", views=4, seed=3, jitter=Jitter(hue=0.5))
    for item in range(12):
        view, other = plain.sample(item), jittered.sample(item)
        assert torch.equal(view["map"], other["map"])
        assert torch.equal(other["image"], again.sample(item)["image"])
        # Hue moves no pixel's largest and smallest channel.
        value = view["image"].amax(0) - other["image"].amax(0)
        assert value.abs().max() < 0.05
        assert not torch.equal(view["image"], other["image"])
    turns = {float((plain.sample(i)["image"] - jittered.sample(i)["image"]).abs().mean()) for i in range(4)}
    assert len(turns) == 4  # each view its own
    assert Dataset(Noise(), size=16, jitter=Jitter(hue=0.1)).drawn


def test_held_out_pictures_keep_their_own_colours() -> None:
    def parts(**options: Any) -> tuple[Dataset, Dataset]:
        data = {"type": "photos", "size": 16, "views": 1, **options}
        denoiser = {"type": "unet", "channels": 8, "blocks": 1}
        return datasets(
            Recipe.parse(
                {
                    "name": "a",
                    "data": data,
                    "autoencoder": {"type": "identity"},
                    "denoiser": denoiser,
                    "train": {"steps": 1, "batch": 2},
                }
            )
        )

    (plain, held), (jittered, same) = parts(), parts(jitter={"hue": 0.5})
    assert torch.equal(held.sample(0)["image"], same.sample(0)["image"])
    assert not torch.equal(plain.sample(0)["image"], jittered.sample(0)["image"])


def test_what_is_out_of_range() -> None:
    with pytest.raises(DataError, match=r"jitter.hue is 0.7; it is at least 0 and at most 0.5"):
        Jitter(hue=0.7)
    with pytest.raises(RecipeError, match=r"must be at most 0.5, got 0.7"):
        Recipe.parse({"name": "a", "data": {"type": "photos", "size": 16, "jitter": {"hue": 0.7}}})
