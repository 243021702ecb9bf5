"""The low-res conditioner: contract, resampling against Pillow, noise augmentation, pictures people give, fidelity."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ldmkit_low_res.conditioner import LowResConditioner
from ldmkit_low_res.degradation import area, bicubic
from PIL import Image

from ldmkit.conditioning import Canvas, ForeignStage, LatentSpec
from ldmkit.conditioning.widgets import ImageDrop
from ldmkit.errors import DataError, RecipeError, UsageError
from ldmkit.testing import LATENT, check_conditioner

BLIND = ("bsr", "bsr-light")


def canvas(grid: tuple[int, int]) -> Canvas:
    size = (grid[0] * 4, grid[1] * 4)
    return Canvas(size, grid, torch.device("cpu"), torch.float32, lambda images: images)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photo(height: int = 64, width: int = 64, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """An 8-bit picture with structure at every scale, in [-1, 1]."""
    picture = torch.zeros(channels, height, width)
    for side in (2, 4, 8, 16, 32):
        picture += F.interpolate(
            torch.randn(1, channels, side, side, generator=generator(seed + side)), (height, width)
        )[0]
    return (((picture / 6).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def pillow(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray(((picture + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy())


def from_pillow(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 2, "degradation": "area", "noise": 0.3},
        {"size": (20, 12), "degradation": "bsr"},
        {"degradation": "bsr-light", "noise": 1.0},
        {"channels": 1},
        {"latent": True, "space": LATENT, "noise": 0.2},
    ],
)
def test_contract(options):
    shape = {"channels": options.get("channels", 3)}
    samples = [{"image": photo(seed=seed, **shape)} for seed in (0, 1)]
    check_conditioner(LowResConditioner(**options), samples[0], others=samples[1:], value=photo(20, 12, **shape))


def test_importing_the_plugin_loads_no_torch():
    code = "import sys, ldmkit_low_res; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# resampling


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (21, 21), (8, 8), (13, 40)])
def test_bicubic_is_pillows(size):
    picture = photo()
    expected = from_pillow(pillow(picture).resize(size[::-1], Image.Resampling.BICUBIC))
    # Pillow rounds to 8 bits between its two passes: one level of difference is left in some pixels
    difference = (bicubic(picture, size) - expected).abs() * 127.5
    assert difference.max() < 1.01
    assert difference.square().mean().sqrt() < 0.5


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_area_is_the_mean_of_blocks(scale):
    picture = photo()
    blocks = picture.unfold(1, scale, scale).unfold(2, scale, scale).flatten(3).mean(-1)
    assert (area(picture, (64 // scale, 64 // scale)) - blocks).abs().max() <= 0.501 / 127.5


@pytest.mark.parametrize("resampling", [bicubic, area])
def test_results_are_8_bit_and_batches_go_through_alike(resampling):
    pictures = torch.stack([photo(seed=seed) for seed in (0, 1)])
    small = resampling(pictures, (16, 16))
    levels = (small + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert torch.equal(small[1], resampling(pictures[1], (16, 16)))


# preparing


@pytest.mark.parametrize("degradation", ["bicubic", "area", *BLIND])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_every_scale(scale, degradation):
    conditioner = LowResConditioner(scale=scale, degradation=degradation)
    small = conditioner.prepare({"image": photo(96, 48)}, generator())["image"]
    assert small.shape == (3, 96 // scale, 48 // scale)
    assert small.abs().max() <= 1
    assert conditioner.output_size({"image": small}) == (96, 48)


@pytest.mark.parametrize("degradation", BLIND)
def test_chance_is_keyed_by_the_generator(degradation):
    conditioner, sample = LowResConditioner(degradation=degradation), {"image": photo()}
    first, again, other = (conditioner.prepare(sample, generator(seed))["image"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(conditioner.prepare(sample)["image"], conditioner.prepare(sample)["image"])


def test_a_size_instead_of_a_scale():
    conditioner = LowResConditioner(size=(20, 12))
    small = conditioner.prepare({"image": photo(64, 48)})
    assert small["image"].shape == (3, 20, 12)
    assert conditioner.output_size(small) is None
    assert LowResConditioner(size=20).prepare({"image": photo()})["image"].shape == (3, 20, 20)
    with pytest.raises(DataError, match="20 x 12, is larger than the image, 64 x 8"):
        conditioner.prepare({"image": photo(64, 8)})


def test_a_size_that_the_scale_does_not_divide():
    with pytest.raises(DataError, match=r"64 x 64 cannot be made 3 times smaller\n.*such as 63 x 63"):
        LowResConditioner(scale=3).prepare({"image": photo()})
    with pytest.raises(RecipeError, match="64 x 96 cannot be made 5 times smaller"):
        LowResConditioner(scale=5, space=LatentSpec(4, 8, (64, 96)))


@pytest.mark.parametrize(
    "options", [{"scale": 0}, {"noise": 1.5}, {"noise": -0.1}, {"channels": 4}, {"size": 0}, {"size": (4, 0)}]
)
def test_impossible_options(options):
    with pytest.raises(RecipeError):
        LowResConditioner(**options)


def test_an_image_of_other_channels():
    with pytest.raises(DataError, match=r"the image is \(1, 64, 64\); \(3, h, w\) is needed\n  see `channels`"):
        LowResConditioner().prepare({"image": photo(channels=1)})


# encoding


def test_on_its_own_grid_the_picture_is_passed_as_it_is():
    conditioner = LowResConditioner()
    small = torch.stack([photo(16, 16, seed=seed) for seed in (0, 1)])
    assert torch.equal(conditioner.encode({"image": small}, canvas((16, 16))).concat, small)
    assert conditioner.encode({"image": small}, canvas((16, 16))).vector is None


def test_elsewhere_it_is_resized_to_the_grid():
    small = photo(16, 16)[None]
    for grid in ((8, 8), (32, 24)):
        answer = LowResConditioner().encode({"image": small}, canvas(grid)).concat
        torch.testing.assert_close(answer, F.interpolate(small, grid, mode="bicubic", antialias=True))


def test_a_picture_of_any_size_keeps_its_scale_on_a_larger_canvas():
    small = photo(37, 53)[None]
    rounded = replace(canvas((38, 56)), picture=(148, 212))
    answer = LowResConditioner().encode({"image": small}, rounded).concat
    assert torch.equal(answer[..., :37, :53], small)  # not stretched; beyond it the last row and column again
    assert torch.equal(answer[..., 37:, :53], small[..., -1:, :])
    assert torch.equal(answer[..., :37, 53:], small[..., -1:].expand(-1, -1, -1, 3))


def test_the_latent_of_the_enlargement_comes_after_the_picture():
    seen = []

    def to_latent(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.cat([F.avg_pool2d(images, 4), F.avg_pool2d(images, 4)[:, :1]], 1)

    own = LowResConditioner(latent=True, space=LatentSpec(4, 4, (64, 64)))
    place = replace(canvas((16, 16)), to_latent=to_latent)
    prepared = own.collate([own.prepare({"image": photo(seed=seed)}) for seed in (0, 1)])
    found = own.encode(prepared, place).concat
    assert found is not None
    small = prepared["image"]
    enlarged = [pillow(row).resize((64, 64), Image.Resampling.BICUBIC) for row in small]
    # Pillow rounds to 8 bits between its two passes and at the end
    torch.testing.assert_close(seen[0], torch.stack([from_pillow(row) for row in enlarged]), rtol=0, atol=2.1 / 127.5)
    torch.testing.assert_close(found, torch.cat([small, to_latent(seen[0])], 1), rtol=0, atol=0)
    assert own.emits.concat == 7
    assert not own.null(place).concat.any()


def test_the_latent_covers_the_whole_canvas():
    """A picture whose size the networks do not divide: its edge goes on, and what lies on the picture is not stretched."""
    own = LowResConditioner(latent=True, space=LatentSpec(3, 4, (64, 64)))
    place = replace(canvas((16, 16)), picture=(52, 56), to_latent=lambda images: F.avg_pool2d(images, 4))
    small = photo(13, 14)[None]
    found = own.encode({"image": small}, place).concat
    assert found is not None
    assert found.shape == (1, 6, 16, 16)
    # Away from the seam, where the bicubic kernel sees the edge go on instead of ending.
    inner = F.avg_pool2d(F.interpolate(small, (52, 56), mode="bicubic", antialias=True).clamp(-1, 1), 4)[..., :11, :12]
    torch.testing.assert_close(found[:, 3:, :11, :12], inner, rtol=0, atol=1e-5)


def test_a_latent_needs_its_space():
    with pytest.raises(RecipeError, match="needs to know the latent space"):
        LowResConditioner(latent=True)


def test_noise_augmentation_keeps_the_variance_and_tells_the_level():
    conditioner = LowResConditioner(scale=1, noise=1.0)
    unit = torch.randn(64, 1, 64, 64, generator=generator())
    level = torch.linspace(0, 1, 64)
    noise = torch.randn(64, 1, 64, 64, generator=generator(1))
    answer = conditioner.encode({"image": unit, "level": level, "noise": noise}, canvas((64, 64)))
    assert (answer.concat.std((1, 2, 3)) - 1).abs().max() < 0.06
    assert torch.equal(answer.concat[0], unit[0])
    assert torch.equal(answer.concat[-1], noise[-1])
    rates = 10000.0 ** (-torch.arange(32) / 32)
    expected = torch.cat([(1000 * level[9] * rates).cos(), (1000 * level[9] * rates).sin()])
    torch.testing.assert_close(answer.vector[9], expected, atol=1e-4, rtol=1e-4)


def test_noise_is_drawn_up_to_its_level_in_training_alone():
    conditioner = LowResConditioner(noise=0.4)
    rows = [conditioner.prepare({"image": photo()}, generator(seed)) for seed in range(200)]
    levels = torch.stack([row["level"] for row in rows])
    assert 0 < levels.min() < 0.02 < 0.38 < levels.max() < 0.4
    given = conditioner.from_user(photo(8, 8), (32, 32))
    assert given["level"] == 0
    assert torch.equal(conditioner.prepare({"image": photo()})["level"], torch.zeros(()))


def test_the_null_is_grey():
    null = LowResConditioner(noise=0.1).null(canvas((4, 6)))
    assert torch.equal(null.concat, torch.zeros(1, 3, 4, 6))
    assert torch.equal(null.vector, torch.cat([torch.ones(1, 32), torch.zeros(1, 32)], 1))


# people


def test_every_form_of_a_picture_reads_the_same(tmp_path):
    picture = photo(10, 14)
    path = tmp_path / "small.png"
    pillow(picture).save(path)
    pixels = np.array(pillow(picture))
    conditioner = LowResConditioner()
    for form in (path, str(path), pillow(picture), pixels, picture, torch.from_numpy(pixels).permute(2, 0, 1)):
        prepared = conditioner.from_user(form, (40, 56))
        torch.testing.assert_close(prepared["image"], picture, atol=1e-6, rtol=0)
        assert conditioner.output_size(prepared) == (40, 56)


def test_pictures_are_turned_and_laid_on_white(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    path = tmp_path / "turned.png"
    pillow(photo(10, 14)).save(path, exif=exif)
    assert LowResConditioner().from_user(path, (64, 64))["image"].shape == (3, 14, 10)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert torch.equal(LowResConditioner().from_user(clear, (16, 16))["image"], torch.ones(3, 4, 4))


def test_grey_pictures():
    grey = LowResConditioner(channels=1).from_user(np.full((4, 6), 255, dtype=np.uint8), (16, 24))["image"]
    assert torch.equal(grey, torch.ones(1, 4, 6))
    assert LowResConditioner().from_user(np.zeros((4, 6), dtype=np.uint8), (16, 24))["image"].shape == (3, 4, 6)
    assert LowResConditioner(channels=1).preview({"image": grey}).mode == "L"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(1, 4, 4), r"a tensor holds \(3, h, w\); given: \(1, 4, 4\)"),
        (
            torch.full((3, 4, 4), 200.0),
            r"values in \[-1, 1\], a uint8 one 0 to 255; given: torch.float32 from 200 to 200",
        ),
        (torch.full((3, 4, 4), math.nan), "from nan to nan"),
        (np.zeros((4, 4, 3)), "of uint8; given: float64"),
        (np.zeros((2, 4, 4, 3), dtype=np.uint8), r"of shape \(2, 4, 4, 3\)"),
        ("/nowhere/small.png", "/nowhere/small.png: the image cannot be read"),
        (7, "not int"),
    ],
)
def test_what_is_no_picture_is_refused(value, words):
    with pytest.raises(UsageError, match=words):
        LowResConditioner().from_user(value, (64, 64))


def test_a_file_that_is_no_picture(tmp_path):
    path = tmp_path / "small.png"
    path.write_text("no picture")
    with pytest.raises(UsageError, match="the image cannot be read: not a picture"):
        LowResConditioner().from_user(path, (64, 64))


def test_previews_show_the_picture():
    picture = photo(10, 14)
    assert list(LowResConditioner().preview({"image": picture}).tobytes()) == list(pillow(picture).tobytes())


# fidelity


@pytest.mark.parametrize("degradation", ["bicubic", "area"])
def test_fidelity_is_the_psnr_of_the_way_back(degradation):
    conditioner = LowResConditioner(degradation=degradation)
    truth = torch.stack([photo(seed=seed) for seed in (0, 1)])
    prepared = conditioner.collate([conditioner.prepare({"image": image}) for image in truth])
    assert torch.equal(conditioner.fidelity(truth, prepared), torch.full((2,), 100.0))
    flat = torch.zeros(2, 3, 64, 64)
    error = ((prepared["image"] - flat[:, :, :16, :16]) * 127.5).square().mean((1, 2, 3))
    expected = 10 * (255.0**2 / error).log10()
    torch.testing.assert_close(conditioner.fidelity(flat, prepared), expected, atol=0.05, rtol=0)


def test_fidelity_agrees_with_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio

    conditioner = LowResConditioner()
    prepared = conditioner.collate([conditioner.prepare({"image": photo(seed=3)})])
    image = photo(seed=4)
    small = bicubic(image, (16, 16))
    expected = peak_signal_noise_ratio(prepared["image"][0].numpy(), small.numpy(), data_range=2.0)
    assert conditioner.fidelity(image[None], prepared).item() == pytest.approx(expected, abs=1e-3)


# released checkpoints


def test_a_released_super_resolution_stage():
    conditioner = LowResConditioner.from_foreign(ForeignStage("torch.nn.Identity", {}, "LR_image", "concat", 3))
    assert (conditioner.scale, conditioner.channels) == (4, 3)
    assert not list(conditioner.parameters())
    assert LowResConditioner.from_foreign(ForeignStage("torch.nn.Identity", {}, "depth", "concat", 3)) is None


def test_a_page_says_what_becomes_of_the_small_image():
    assert LowResConditioner(scale=4).widget() == ImageDrop(help="each side becomes 4 times larger")
    assert LowResConditioner(size=16).widget() == ImageDrop(size=(16, 16))
