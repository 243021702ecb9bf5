"""Mean and standard deviation of latents, with intervals that cover."""

import math

import pytest
import torch

from ldmkit.autoencoder import LatentStatistics, make, measure
from ldmkit.errors import DivergedError, UsageError


def test_equal_to_one_pass_over_everything():
    latents = (
        torch.randn(30, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
        * torch.tensor([1.0, 2, 3]).view(3, 1, 1)
        + 7
    )
    found = measure(latents.split(8), weights="ab" * 32)
    assert found.count == 30
    assert found.mean == pytest.approx(latents.mean(dim=(0, 2, 3)).tolist())
    assert found.std == pytest.approx(latents.std(dim=(0, 2, 3), correction=0).tolist())
    assert found.overall_std == pytest.approx(float(latents.std(correction=0)))
    assert LatentStatistics.from_dict(found.to_dict()) == found


def test_intervals_cover_the_truth():
    """Images whose pixels are alike, so that only images count: 95 % of 300 experiments, give or take."""
    generator = torch.Generator().manual_seed(1)
    truth, hits = math.sqrt(1 + 0.25), torch.zeros(2)
    for _ in range(300):
        level = torch.randn(200, 1, 1, 1, generator=generator, dtype=torch.float64)
        pixels = 0.5 * torch.randn(200, 1, 3, 3, generator=generator, dtype=torch.float64)
        found = measure([level + pixels])
        hits += torch.tensor(
            [abs(found.mean[0]) < found.mean_interval[0], abs(found.std[0] - truth) < found.std_interval[0]]
        )
    assert (hits / 300).tolist() == pytest.approx([0.95, 0.95], abs=0.035)


def test_scalings():
    found = measure(
        [
            torch.randn(50, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 3
            + torch.tensor([1.0, -4.0]).view(2, 1, 1)
        ]
    )
    model = make("kl", channels=8, downsample=1, latent_channels=2)
    model.set_statistics(found, scale="std")
    assert model.latent_shift.tolist() == [0, 0]
    assert model.latent_scale.tolist() == pytest.approx([1 / found.overall_std] * 2)
    model.set_statistics(found, scale="per-channel")
    assert model.latent_shift.tolist() == pytest.approx(found.mean)
    assert model.latent_scale.tolist() == pytest.approx([1 / std for std in found.std])
    model.set_statistics(found, scale=0.5)
    assert model.latent_scale.tolist() == [0.5, 0.5]
    assert model.statistics.count == 50
    assert model.statistics.std == pytest.approx(found.std)


def test_scales_that_cannot_be():
    flat = measure([torch.ones(5, 2, 3, 3)])
    for scale in ("std", "per-channel"):
        with pytest.raises(DivergedError, match="standard deviation"):
            flat.scaling(scale if scale == "per-channel" else "std")
    with pytest.raises(UsageError, match="std, per-channel or a number"):
        flat.scaling("unit")
    for number in (0.0, -1.0, math.inf):
        with pytest.raises(UsageError, match="positive number"):
            flat.scaling(number)


def test_latents_that_cannot_be_measured():
    with pytest.raises(UsageError, match="not a single image"):
        measure([])
    with pytest.raises(DivergedError, match="not finite"):
        measure([torch.full((2, 1, 2, 2), torch.inf)])
    with pytest.raises(UsageError, match="expected"):
        measure([torch.zeros(2, 2)])


def test_hash_changes_with_any_weight_and_nothing_else():
    torch.manual_seed(0)
    model = make("vq", channels=8, downsample=2, blocks=1, codebook=4)
    before = model.weights_hash()
    model.set_statistics(measure([torch.randn(4, 3, 2, 2)]), scale="per-channel")
    model.eval().requires_grad_(False)
    assert model.weights_hash() == before
    for parameter in model.parameters():
        with torch.no_grad():
            kept = parameter.clone()
            parameter.view(-1)[-1] += 1e-3
            assert model.weights_hash() != before
            parameter.copy_(kept)
    assert model.weights_hash() == before
