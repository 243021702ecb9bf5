"""The blind degradations: every stage against a closed form, and what whole pictures come out like."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from ldmkit_low_res import bsr
from ldmkit_low_res.bsr import BSR, BSR_LIGHT, Dice, degrade, filtered, gaussian_kernel, resize
from ldmkit_low_res.camera import camera


def dice(seed: int = 0) -> Dice:
    return Dice(torch.Generator().manual_seed(seed))


def photo(side: int = 64, channels: int = 3) -> torch.Tensor:
    picture = torch.zeros(channels, side, side)
    for cells in (2, 4, 8, 16):
        noise = torch.rand(1, channels, cells, cells, generator=torch.Generator().manual_seed(cells))
        picture += F.interpolate(noise, (side, side), mode="bilinear")[0] / 4
    return picture


# kernels


@pytest.mark.parametrize("side", [5, 8, 25])
def test_kernels_have_the_asked_covariance(side):
    """In the limit of a kernel that fits its window: total 1, mean = offset, covariance as given."""
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.4]])
    kernel = gaussian_kernel(side, covariance).double()
    along = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    y, x = torch.meshgrid(along, along, indexing="ij")
    assert kernel.sum().item() == pytest.approx(1)
    assert (kernel * y).sum().item() == pytest.approx(0, abs=1e-6)
    found = [(kernel * a * b).sum().item() for a, b in ((y, y), (y, x), (x, x))]
    assert found == pytest.approx([0.5, 0.2, 0.4], abs=0.02)


def test_blurring_is_a_correlation_mirrored_at_the_edges():
    from scipy.ndimage import correlate

    picture = photo(12)
    kernel = gaussian_kernel(7, torch.tensor([[2.0, 0.5], [0.5, 1.0]]))
    expected = torch.stack(
        [torch.from_numpy(correlate(plane.numpy(), kernel.numpy(), mode="mirror")) for plane in picture]
    )
    torch.testing.assert_close(filtered(picture, kernel), expected)


def test_blurring_keeps_flat_pictures_flat_however_small():
    for side in (1, 3, 40):
        flat = torch.full((3, side, side), 0.3)
        torch.testing.assert_close(filtered(flat, gaussian_kernel(25, 4.0 * torch.eye(2))), flat)


def test_decimation_does_not_shift():
    """A ramp blurred with the shifted kernel and decimated is the ramp at the centres of the blocks."""
    step = 4
    ramp = torch.arange(64.0).expand(1, 64, 64) / 64
    kernel = gaussian_kernel(25, 4.0 * torch.eye(2), offset=(step - 1) / 2)
    small = filtered(ramp, kernel)[:, ::step, ::step]
    expected = ((torch.arange(16) * step + (step - 1) / 2) / 64).expand(1, 16, 16)
    torch.testing.assert_close(small[:, 4:-4, 4:-4], expected[:, 4:-4, 4:-4], atol=1e-4, rtol=0)


def test_the_constants_of_the_released_code():
    assert BSR.anisotropic_sides == tuple(2 * n + 3 for n in range(2, 12))
    assert (BSR.blurs, BSR.noise, BSR.jpeg, BSR.jpeg_probability, BSR.camera_probability) == (
        2,
        (2, 25),
        (30, 95),
        0.9,
        0.25,
    )
    assert BSR_LIGHT.anisotropic_sides == tuple(n + 3 for n in range(2, 12))
    assert BSR_LIGHT.isotropic_sides == tuple(n + 3 for n in range(2, 5))
    assert (BSR_LIGHT.blurs, BSR_LIGHT.noise, BSR_LIGHT.jpeg, BSR_LIGHT.blur_scale) == (1, (1, 2), (80, 95), 0.25)
    assert (BSR.soft_resize, BSR_LIGHT.soft_resize, BSR.half_probability) == (0.75, 0.8, 0.25)


# noise, JPEG, camera


def test_noise_is_within_its_level_and_of_three_kinds():
    flat, kinds = torch.full((3, 64, 64), 0.5), set()
    for seed in range(40):
        noise = bsr._noise(flat, settings=BSR, dice=dice(seed)) - flat
        assert 0 < noise.std() * 255 < 26
        correlation = torch.corrcoef(noise.flatten(1))[0, 1].item()
        kinds.add("grey" if correlation > 0.999 else "free" if abs(correlation) < 0.05 else "correlated")
    assert kinds == {"grey", "free", "correlated"}


def test_jpeg_is_pillows():
    picture = photo()
    rough = bsr._jpeg(picture, settings=bsr.Settings(**{**vars(BSR), "jpeg": (30, 30)}), dice=dice(), probability=1.0)
    fine = bsr._jpeg(picture, settings=bsr.Settings(**{**vars(BSR), "jpeg": (95, 95)}), dice=dice(), probability=1.0)
    assert 0 < (fine - picture).square().mean() < (rough - picture).square().mean() < 2e-3
    assert torch.equal(bsr._jpeg(picture, settings=BSR, dice=dice(), probability=0.0), picture)


def test_a_camera_without_noise_keeps_flat_pictures():
    flat = torch.tensor([0.2, 0.5, 0.7])[:, None, None].expand(3, 16, 16)
    out = camera(flat, gains=(2.0, 1.0, 1.7), shot=0.0, noise=torch.zeros(16, 16))
    torch.testing.assert_close(out, flat.contiguous(), atol=1e-5, rtol=0)


def test_a_cameras_noise_grows_with_light():
    noise = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    dark, light = (
        camera(torch.full((3, 128, 128), value), gains=(1.0, 1.0, 1.0), shot=0.01, noise=noise) ** 2.2
        for value in (0.3, 0.9)
    )
    expected = math.sqrt((0.9**2.2 + 0.1) / (0.3**2.2 + 0.1))
    assert (light[:, 8:-8, 8:-8].std() / dark[:, 8:-8, 8:-8].std()).item() == pytest.approx(expected, rel=0.1)


# the whole


@pytest.mark.parametrize("settings", [BSR, BSR_LIGHT], ids=["bsr", "bsr-light"])
@pytest.mark.parametrize(("side", "size"), [(64, (16, 16)), (64, (32, 32)), (63, (21, 21)), (8, (1, 1)), (40, (13, 7))])
def test_sizes_and_ranges(settings, side, size):
    for seed in range(6):
        small = degrade(photo(side), size, settings, dice(seed).generator)
        assert small.shape == (3, *size)
        assert 0 <= small.min() <= small.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_the_light_form_is_closer_to_plain_resampling(channels):
    picture = photo(channels=channels)
    plain = F.interpolate(picture[None], (16, 16), mode="bicubic", antialias=True)[0]

    def error(settings: bsr.Settings) -> float:
        pictures = [degrade(picture, (16, 16), settings, dice(seed).generator) for seed in range(40)]
        return torch.stack([(p - plain).square().mean() for p in pictures]).mean().sqrt().item()

    assert 0.002 < error(BSR_LIGHT) < 0.85 * error(BSR) < 0.2


def test_the_small_size_comes_after_the_random_one(monkeypatch):
    """However the stages are shuffled, the picture ends at the asked size after any other resizing."""
    sizes: list[tuple[int, int]] = []

    def spied(picture: torch.Tensor, size: tuple[int, int], dice: Dice) -> torch.Tensor:
        sizes.append(tuple(size))
        return resize(picture, size, dice)

    monkeypatch.setattr(bsr, "resize", spied)
    orders = set()
    for seed in range(30):
        sizes.clear()
        degrade(photo(), (16, 16), BSR, dice(seed).generator)
        assert sizes[-1] == (16, 16)
        orders.add(len(sizes))
    assert orders == {1, 2, 3}
