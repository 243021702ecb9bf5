"""The image conditioner: its contract, block means and pixels as the truth, and what is no partner."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ldmkit_image.conditioner import ImageConditioner
from PIL import Image

from ldmkit.conditioning import Canvas
from ldmkit.data import Field
from ldmkit.errors import DataError, RecipeError
from ldmkit.testing import LATENT, check_conditioner


def photo(channels: int = 3, height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    pixels = torch.randint(0, 256, (channels, height, width), generator=torch.Generator().manual_seed(seed))
    return pixels / 127.5 - 1


def canvas() -> Canvas:
    return Canvas((64, 64), (8, 8), torch.device("cpu"), torch.float32, lambda images: F.avg_pool2d(images, 8))


@pytest.mark.parametrize(
    "options",
    [{}, {"channels": 1}, {"channels": 12}, {"unshuffle": True, "space": LATENT}, {"latent": True, "space": LATENT}],
)
def test_contract(options):
    channels = options.get("channels", 3)
    samples = [{"source": photo(channels, seed=seed)} for seed in (0, 1)]
    check_conditioner(ImageConditioner(**options), samples[0], others=samples[1:], value=photo(channels, seed=2))


def test_importing_the_plugin_loads_no_torch():
    code = "import sys, ldmkit_image; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_by_default_each_place_has_the_mean_of_its_block():
    source = photo()[None]
    found = ImageConditioner().encode({"source": source}, canvas()).concat
    blocks = source.reshape(1, 3, 8, 8, 8, 8).mean((3, 5))
    torch.testing.assert_close(found, blocks)


def test_unshuffled_every_pixel_is_there():
    conditioner, source = ImageConditioner(unshuffle=True, space=LATENT), photo()[None]
    found = conditioner.encode({"source": source}, canvas()).concat
    assert found.shape == (1, 3 * 64, 8, 8)
    assert torch.equal(F.pixel_shuffle(found, 8), source)
    assert found[0, 64 + 8 * 2 + 5, 3, 4] == source[0, 1, 3 * 8 + 2, 4 * 8 + 5]


def test_the_latent_is_the_autoencoders_and_grey_is_repeated():
    conditioner = ImageConditioner(latent=True, space=replace(LATENT, channels=3))
    prepared = conditioner.collate([conditioner.prepare({"source": photo(1)})])
    found = conditioner.encode(prepared, canvas()).concat
    torch.testing.assert_close(found, F.avg_pool2d(photo(1)[None].expand(1, 3, -1, -1), 8))


def test_a_partner_of_any_size_is_not_stretched():
    place = replace(canvas(), picture=(60, 52))
    source = photo(height=60, width=52)[None]
    for options in ({}, {"unshuffle": True, "space": LATENT}):
        found = ImageConditioner(**options).encode({"source": source}, place).concat
        whole = F.pad(source, (0, 12, 0, 4), mode="replicate")
        expected = F.pixel_unshuffle(whole, 8) if options else F.avg_pool2d(whole, 8)
        torch.testing.assert_close(found, expected)


def test_fit_learns_the_channels_and_the_result_constructs():
    known = {"source": Field("image", channels=1, aligned=True)}
    assert ImageConditioner.fit({}, iter([]), known) == {"channels": 1}
    assert ImageConditioner.fit({}, [{"source": None}, {"source": photo(12)}]) == {"channels": 12}
    assert ImageConditioner.fit({}, [{"source": np.zeros((4, 4), dtype=np.float32)}]) == {"channels": 1}
    assert ImageConditioner.fit({"latent": True}, iter([]), known) == {}
    assert ImageConditioner(**ImageConditioner(channels=12).options).emits.concat == 12
    with pytest.raises(DataError, match="no sample has a `source`"):
        ImageConditioner.fit({}, [{"source": None}])


def test_what_a_person_gives_is_what_the_data_hold(tmp_path):
    pixels = np.arange(64 * 64, dtype=np.int64).reshape(64, 64) % 251
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "depth.png")
    conditioner = ImageConditioner(channels=1)
    conditioner.known_fields = {"source": Field("image", channels=1, aligned=True)}
    prepared = conditioner.prepare({"source": torch.from_numpy(pixels / 127.5 - 1)[None]})
    for value in (tmp_path / "depth.png", str(tmp_path / "depth.png"), Image.open(tmp_path / "depth.png")):
        torch.testing.assert_close(conditioner.from_user(value, (64, 64))["source"], prepared["source"])
    assert list(conditioner.preview(prepared).tobytes()) == pixels.flatten().tolist()


def test_a_range_of_numbers_becomes_that_of_images():
    conditioner = ImageConditioner(channels=1, range=(0.0, 80.0))
    found = conditioner.prepare({"source": torch.tensor([[0.0, 20.0, 80.0, 200.0]])})["source"]
    torch.testing.assert_close(found, torch.tensor([[[-1.0, -0.5, 1.0, 1.0]]]))


def test_previews_of_many_channels_show_the_first():
    source = photo(12)
    shown = ImageConditioner(channels=12).preview({"source": source})
    assert shown.tobytes() == ImageConditioner(channels=1).preview({"source": source[:1]}).tobytes()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (photo(1), r"source: the image is \(1, 64, 64\); \(3, h, w\) is needed\n  see `channels`"),
        (photo()[None], r"is \(1, 3, 64, 64\)"),
        (photo().fill_(math.nan), "NaN or infinite"),
        (photo() * 40 + 40, r"from 0 to 80, and \[-1, 1\] is needed\n.*`range: \[0, 80\]`"),
    ],
)
def test_what_is_no_partner(source, words):
    with pytest.raises(DataError, match=words):
        ImageConditioner().prepare({"source": source})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latent": True, "unshuffle": True, "space": LATENT}, "both given"),
        ({"latent": True}, "need to know the latent space"),
        ({"unshuffle": True}, "need to know the latent space"),
        ({"range": (1.0, 1.0)}, "the first number is the lower one"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(RecipeError, match=words):
        ImageConditioner(**options)
