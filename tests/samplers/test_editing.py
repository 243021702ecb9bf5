"""img2img, inpainting, inversion and interpolation, on data whose answers are known."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ldmkit import diffusion, samplers, schedules
from ldmkit.errors import UsageError
from ldmkit.random import normal, sample_generators

SCHEDULE = schedules.linear(end=0.0155)
Network = Callable[[Tensor, Tensor], Tensor]


def gaussian(mean: Tensor, covariance: Tensor) -> Network:
    """The exact denoiser of pixels that are N(mean, covariance) along the last dimension."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (float(part[0]) for part in SCHEDULE.alpha_sigma(t))
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(len(mean)))
        return mean + (x - alpha * mean) @ gain.T

    return denoise


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "ddpm"])
def test_img2img_takes_its_share_of_the_steps(toy: Network, strength: float, sampler: str) -> None:
    process, seen = diffusion.make(schedule=SCHEDULE.config), []
    latents, noise = (normal(sample_generators(0, 2, name), (3, 4, 4)) for name in ("latents", "noise"))

    def watched(x: Tensor, t: Tensor) -> Tensor:
        seen.append((float(t[0]), x.clone()))
        return process.denoiser(toy)(x, t)

    samplers.img2img(
        getattr(samplers, sampler),
        watched,
        latents,
        noise,
        SCHEDULE,
        20,
        strength=strength,
        generators=sample_generators(0, 2),
    )
    levels = sorted({t for t, _ in seen}, reverse=True)
    assert levels == list(samplers.make_grid(SCHEDULE, 20).timesteps[-int(20 * strength) :])
    first = torch.full((2,), levels[0])
    assert torch.allclose(seen[0][1], process.noised(latents, noise, first), atol=1e-6)


def test_img2img_keeps_more_the_weaker_it_is(mixture: Any) -> None:
    data = mixture(SCHEDULE)
    latents, noise = torch.ones(1, 1, 32, 32), normal(sample_generators(0, 1), (1, 32, 32))
    kept = [
        float((samplers.img2img(samplers.dpmpp_2m, data, latents, noise, SCHEDULE, 20, strength=s) > 0).float().mean())
        for s in (0.1, 0.4, 1.0)
    ]
    assert kept[0] > 0.95
    assert kept[0] > kept[1] > kept[2]
    assert abs(kept[2] - 0.5) < 0.06


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.2, 0.01])
def test_img2img_refuses_other_strengths(toy: Network, strength: float) -> None:
    with pytest.raises(UsageError, match="strength"):
        samplers.img2img(
            samplers.ddim, toy, torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), SCHEDULE, 20, strength=strength
        )


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "heun", "unipc", "euler_ancestral"])
def test_masked_keeps_the_known_part(toy: Network, sampler: str) -> None:
    known, noise = (normal(sample_generators(0, 2, name), (3, 4, 4)) for name in ("latents", "noise"))
    mask = torch.zeros(4, 4)
    mask[:2] = 1
    denoiser = samplers.masked(diffusion.make(schedule=SCHEDULE.config).denoiser(toy), known, mask)
    result = getattr(samplers, sampler)(denoiser, noise, SCHEDULE, 10, generators=sample_generators(0, 2))
    assert torch.allclose(result[..., :2, :], known[..., :2, :], atol=1e-5)
    assert float((result[..., 2:, :] - known[..., 2:, :]).abs().mean()) > 0.1


def test_a_mask_lies_between_0_and_1(toy: Network) -> None:
    with pytest.raises(UsageError, match="1 keeps and 0 generates"):
        samplers.masked(toy, torch.zeros(1), torch.full((2,), -1.0))


def test_repaint_draws_from_the_conditional() -> None:
    """Pairs of pixels of correlation 0.9: knowing the first as 1.5, the second is N(1.35, 0.19)."""
    denoiser = gaussian(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    known, mask = torch.tensor([1.5, 0.0]).expand(1, 1, 2000, 2), torch.tensor([1.0, 0.0])
    noise = normal(sample_generators(0, 1), (1, 2000, 2))
    second = {}
    for resample in (1, 10):
        found = samplers.repaint(
            denoiser,
            noise,
            SCHEDULE,
            100,
            known=known,
            mask=mask,
            jump=2,
            resample=resample,
            generators=sample_generators(0, 1),
        )
        assert torch.equal(found[..., 0], known[..., 0])
        second[resample] = found[..., 1]
    assert abs(float(second[10].mean()) - 1.35) < 0.5 * abs(float(second[1].mean()) - 1.35)
    assert abs(float(second[10].mean()) - 1.35) < 0.08
    assert abs(float(second[10].std()) - math.sqrt(0.19)) < 0.1


def test_repaint_without_a_mask_is_ddim(toy: Network) -> None:
    denoiser = diffusion.make(schedule=SCHEDULE.config).denoiser(toy)
    noise = normal(sample_generators(0, 2), (3, 4, 4))
    plain = samplers.ddim(denoiser, noise, SCHEDULE, 20)
    same = samplers.repaint(
        denoiser,
        noise,
        SCHEDULE,
        20,
        known=noise,
        mask=torch.zeros(1),
        resample=1,
        eta=0.0,
        generators=sample_generators(0, 2),
    )
    assert torch.allclose(plain, same, atol=1e-5)


def test_repaint_goes_back_as_often_as_it_says() -> None:
    counts: list[float] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        counts.append(float(t[0]))
        return x

    options: dict[str, Any] = {"known": torch.zeros(1), "mask": torch.zeros(1)}
    samplers.repaint(
        denoise, torch.ones(1, 1, 2, 2), SCHEDULE, 10, jump=3, resample=2, generators=sample_generators(0, 1), **options
    )
    # nodes 0 to 9, T - 1 down: the stretches that end at nodes 3, 6 and 9 are gone over twice, the last step once
    nodes = [int((999 - t) / 100) for t in counts]
    assert nodes == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8, 6, 7, 8, 9]


@pytest.mark.parametrize(("schedule", "prediction"), [("linear", "eps"), ("flow", "flow"), ("edm", "v")])
def test_inversion_comes_back(mixture: Any, schedule: str, prediction: Any) -> None:
    path = schedules.make(schedule)
    data = mixture(path)
    latents = torch.linspace(-1.8, 1.8, 64, dtype=torch.float64).view(1, 1, 8, 8)
    errors = []
    for iterations in (1, 50):
        noise = samplers.invert(data, latents, path, 50, iterations=iterations)
        errors.append(float((samplers.ddim(data, noise, path, 50) - latents).abs().max()))
    assert errors[0] < 0.2
    assert errors[1] < 1e-6


def test_inverted_noise_of_a_gaussian_is_its_whitening() -> None:
    """The flow keeps the quantile: x_0 = m + s z goes to alpha m + sqrt(alpha^2 s^2 + sigma^2) z."""
    mean, std = torch.tensor([0.5]), 0.5
    latents = torch.tensor([[-0.5], [0.5], [1.25]]).view(3, 1, 1, 1)
    noise = samplers.invert(gaussian(mean, torch.tensor([[std**2]])), latents, SCHEDULE, 500, iterations=2)
    alpha, sigma = SCHEDULE.alpha_sigma(torch.tensor(999))
    expected = alpha * mean + torch.hypot(alpha * std, sigma) * torch.tensor([-2.0, 0.0, 1.5])
    assert torch.allclose(noise.flatten(), expected, atol=0.03)


def test_slerp() -> None:
    first, second = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 4.0]])
    assert torch.allclose(samplers.slerp(first, second, 0.0), first)
    assert torch.allclose(samplers.slerp(first, second, 1.0), second, atol=1e-6)
    half = samplers.slerp(first, second, torch.tensor([1 / 3, 0.5]))
    assert torch.allclose(half[0], torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))
    assert torch.allclose(half[1], torch.tensor([math.sqrt(2), 2 * math.sqrt(2)]))
    three = samplers.slerp(first[:1], second[:1], torch.tensor([0.0, 0.5, 1.0]))
    assert torch.allclose(three, torch.tensor([[1, 0], [math.sqrt(0.5), math.sqrt(0.5)], [0, 1]]), atol=1e-6)
    noise = normal(sample_generators(0, 2), (3, 16, 16))
    between = samplers.slerp(noise[:1], noise[1:], 0.4)
    assert abs(float(between.std()) - 1) < 0.05
    assert torch.allclose(samplers.slerp(noise, noise, 0.3), noise, atol=1e-6)
