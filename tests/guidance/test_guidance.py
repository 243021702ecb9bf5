"""Guided denoisers against closed forms on a linear denoiser, and against diffusers' functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from ldmkit.conditioning import Conditioning, KeptSlots
from ldmkit.errors import UsageError
from ldmkit.guidance import (
    Interval,
    apg,
    autoguided,
    gradient_guided,
    guided,
    noisy_gradient_guided,
    parse,
    perp_neg,
    plus_plus,
)
from ldmkit.samplers import ddim
from ldmkit.samplers.grid import make_grid
from ldmkit.schedules import make

NONE: KeptSlots = frozenset()
TEXT, LOW, BOTH = frozenset({"text"}), frozenset({"low_res"}), frozenset({"text", "low_res"})
ALWAYS = [NONE, TEXT, LOW, BOTH]
ROWS = 3


class Linear:
    """x_0 = 0.3 x + t / 1000 + the mean over tokens, row by row; counts the rows of every call."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        assert len(x) == len(t)
        self.calls.append(len(x))
        assert conditioning.tokens is not None
        tokens = conditioning.tokens
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool) if conditioning.mask is None else conditioning.mask
        mean = (tokens * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return 0.3 * x + t[:, None, None, None] / 1000 + mean.view(-1, *x.shape[1:])


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, dict[KeptSlots, Conditioning]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, 2, 3, 4, generator=generator)
    # Branches have different numbers of tokens, as real ones have.
    branches = {
        kept: Conditioning(tokens=torch.randn(ROWS, length, 24, generator=generator))
        for kept, length in ((NONE, 1), (TEXT, 2), (LOW, 3), (BOTH, 4))
    }
    return x, torch.full((ROWS,), 500.0), branches


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("guidance", "formula", "runs"),
    [
        (1, lambda e: e[BOTH], 1),
        (0, lambda e: e[NONE], 1),
        (3, lambda e: e[NONE] + 3 * (e[BOTH] - e[NONE]), 2),
        ({"text": 7}, lambda e: e[LOW] + 7 * (e[BOTH] - e[LOW]), 2),
        (
            {"low_res": 1.5, "text": 7},
            lambda e: e[NONE] + 1.5 * (e[LOW] - e[NONE]) + 7 * (e[BOTH] - e[LOW]),
            3,
        ),
        (
            "null + 2*(low_res - null) + 3*(text - null)",
            lambda e: e[NONE] + 2 * (e[LOW] - e[NONE]) + 3 * (e[TEXT] - e[NONE]),
            3,
        ),
    ],
)
def test_one_call_computes_the_formula(
    guidance: object, formula: Callable[[dict[KeptSlots, Tensor]], Tensor], runs: int
) -> None:
    x, t, branches = inputs()
    network = Linear()
    alone = {kept: network(x, t, conditioning) for kept, conditioning in branches.items()}
    network.calls.clear()
    weights = parse(guidance, ("low_res", "text"), ALWAYS)  # type: ignore[arg-type]
    close(guided(network, branches, weights)(x, t), formula(alone))
    assert network.calls == [runs * ROWS]


def test_guidance_on_noise_is_guidance_on_x0() -> None:
    x, t, branches = inputs()
    alpha, sigma = 0.6, 0.8
    network = Linear()
    clean = guided(network, branches, {BOTH: 3.0, NONE: -2.0})(x, t)
    eps = {kept: (x - alpha * network(x, t, branches[kept])) / sigma for kept in (BOTH, NONE)}
    close((x - alpha * clean) / sigma, eps[NONE] + 3 * (eps[BOTH] - eps[NONE]))


def test_weights_that_cannot_be() -> None:
    _, _, branches = inputs()
    with pytest.raises(UsageError, match="sum to 3"):
        guided(Linear(), branches, {BOTH: 3})
    with pytest.raises(UsageError, match="keeps nothing, which was not given"):
        guided(Linear(), {BOTH: branches[BOTH]}, {BOTH: 3, NONE: -2})
    with pytest.raises(UsageError, match="rescale"):
        guided(Linear(), branches, {BOTH: 1}, rescale=1.5)


@pytest.mark.parametrize("phi", [0.3, 1.0])
def test_rescale_is_that_of_diffusers(phi: float) -> None:
    x, t, branches = inputs()
    network = Linear()
    plain = guided(network, branches, {BOTH: 3.0, NONE: -2.0})(x, t)
    rescaled = guided(network, branches, {BOTH: 3.0, NONE: -2.0}, rescale=phi)(x, t)
    close(rescaled, rescale_noise_cfg(plain, network(x, t, branches[BOTH]), guidance_rescale=phi))


def test_interval() -> None:
    x, _, branches = inputs()
    network = Linear()
    weights = {BOTH: 3.0, NONE: -2.0}
    always = guided(network, branches, weights)
    sometimes = guided(network, branches, weights, interval=Interval(300, 600))
    for now in (100.0, 300.0, 600.0, 601.0):
        t = torch.full((ROWS,), now)
        expected = always(x, t) if 300 <= now <= 600 else network(x, t, branches[BOTH])
        network.calls.clear()
        close(sometimes(x, t), expected)
        assert network.calls == [2 * ROWS if 300 <= now <= 600 else ROWS]
    mixed = torch.tensor([100.0, 400.0, 900.0])
    close(sometimes(x, mixed)[1], always(x, mixed)[1])
    close(sometimes(x, mixed)[2], network(x, mixed, branches[BOTH])[2])


def test_intervals_by_fraction_and_log_snr() -> None:
    schedule = make("linear", start=0.0015, end=0.0195, timesteps=1000)
    assert Interval.of_fraction(0, 0.5, schedule) == Interval(0, 499.5)
    snr = schedule.log_snr(torch.tensor([200.0, 700.0]))
    interval = Interval.of_log_snr(float(snr[1]), float(snr[0]), schedule)
    assert interval.low == pytest.approx(200, abs=0.01)
    assert interval.high == pytest.approx(700, abs=0.01)
    with pytest.raises(UsageError, match="empty"):
        Interval(5, 4)
    with pytest.raises(UsageError, match="fractions"):
        Interval.of_fraction(0.5, 1.5, schedule)


def test_apg_is_that_of_diffusers() -> None:
    _, _, branches = inputs()
    network = Linear()
    denoise = apg(network, branches, {BOTH: 5.0, NONE: -4.0}, parallel=0.2, threshold=2.5, momentum=-0.5)
    buffer = MomentumBuffer(-0.5)
    for step, now in enumerate((900.0, 600.0, 300.0)):
        x, t = inputs(seed=step)[0], torch.full((ROWS,), now)
        cond, null = network(x, t, branches[BOTH]), network(x, t, branches[NONE])
        # Their scale in this form is the excess over 1.
        expected = normalized_guidance(
            cond, null, 4.0, buffer, eta=0.2, norm_threshold=2.5, use_original_formulation=True
        )
        close(denoise(x, t), expected)


def test_apg_with_everything_off_is_guidance() -> None:
    x, t, branches = inputs()
    weights = parse({"low_res": 1.5, "text": 7}, ("low_res", "text"), ALWAYS)
    close(apg(Linear(), branches, weights, parallel=1)(x, t), guided(Linear(), branches, weights)(x, t))


def test_apg_starts_anew_with_a_new_sampling() -> None:
    x, t, branches = inputs()
    denoise = apg(Linear(), branches, {BOTH: 5.0, NONE: -4.0}, momentum=-0.5)
    first = denoise(x, t)
    assert not torch.allclose(denoise(x, t - 100), denoise(x, t - 100))
    close(denoise(x, t), first)
    with pytest.raises(UsageError, match="positive"):
        apg(Linear(), branches, {BOTH: 1}, threshold=0.0)


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_cfg_plus_plus_through_an_ordinary_ddim(scale: float) -> None:
    schedule = make("linear", start=0.0015, end=0.0195, timesteps=1000)
    grid = make_grid(schedule, 7)
    noise, _, branches = inputs()
    noise = noise.double()
    network = Linear()
    weights = parse(scale, ("low_res", "text"), ALWAYS)
    got = ddim(plus_plus(network, branches, weights, grid), noise, schedule, grid)

    x = noise
    for i, now in enumerate(grid.timesteps):  # algorithm 2
        t = torch.full((ROWS,), now)
        eps = {kept: (x - grid.alpha[i] * network(x, t, branches[kept])) / grid.sigma[i] for kept in (NONE, BOTH)}
        mixed = eps[NONE] + scale * (eps[BOTH] - eps[NONE])
        clean = (x - grid.sigma[i] * mixed) / grid.alpha[i]
        x = grid.alpha[i + 1] * clean + grid.sigma[i + 1] * eps[NONE]
    close(got, x)


def test_cfg_plus_plus_names_what_is_missing() -> None:
    schedule = make("linear", start=0.0015, end=0.0195, timesteps=1000)
    x, t, branches = inputs()
    grid = make_grid(schedule, 7)
    with pytest.raises(UsageError, match="no step of its grid starts"):
        plus_plus(Linear(), branches, {BOTH: 0.6, NONE: 0.4}, grid)(x, t)
    with pytest.raises(UsageError, match="null branch"):
        plus_plus(Linear(), {TEXT: branches[TEXT], LOW: branches[LOW]}, {TEXT: 1}, grid)


def test_autoguidance() -> None:
    x, t, _ = inputs()
    good, bad = (lambda x, t: 2 * x), (lambda x, t: x + 1)
    close(autoguided(good, bad, scale=3)(x, t), x + 1 + 3 * (2 * x - x - 1))
    assert autoguided(good, bad, scale=1) is good
    close(autoguided(good, bad, scale=3, interval=Interval(0, 100))(x, t), 2 * x)


def test_perp_neg() -> None:
    x, t, branches = inputs()
    network = Linear()
    positive, null = branches[BOTH], branches[NONE]
    close(
        perp_neg(network, positive, null, [], scale=3)(x, t),
        guided(network, branches, {BOTH: 3.0, NONE: -2.0})(x, t),
    )
    # A negative that is the positive itself takes nothing away; an orthogonal one is subtracted whole.
    close(
        perp_neg(network, positive, null, [(positive, 2.0)], scale=3)(x, t),
        perp_neg(network, positive, null, [], scale=3)(x, t),
    )
    base, towards = network(x, t, null), network(x, t, positive)
    main = (towards - base).flatten(1)
    other = torch.randn(ROWS, 24, generator=torch.Generator().manual_seed(9))
    other = other - (other * main).sum(1, keepdim=True) / (main * main).sum(1, keepdim=True) * main
    negative = Conditioning(tokens=(other + network(0 * x, 0 * t, null).flatten(1))[:, None])
    expected = base + 3 * (towards - base - 0.5 * other.view_as(x))
    network.calls.clear()
    close(perp_neg(network, positive, null, [(negative, 0.5)], scale=3)(x, t), expected)
    assert network.calls == [3 * ROWS]


class Gaussian:
    """x_0 ~ N(0, spread^2) and a noisy look y = x_0 + N(0, look^2): every posterior is known."""

    def __init__(self, spread: float = 1.7, look: float = 0.4) -> None:
        self.schedule = make("linear", start=0.0015, end=0.0195, timesteps=1000)
        self.spread, self.look = spread, look
        self.y = torch.randn(ROWS, 2, 3, 4, generator=torch.Generator().manual_seed(4))

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 given x_t has mean gain x_t and this variance."""
        alpha, sigma = (part[:, None, None, None] for part in self.schedule.alpha_sigma(t))
        total = alpha**2 * self.spread**2 + sigma**2
        return alpha * self.spread**2 / total, self.spread**2 * sigma**2 / total

    def denoiser(self, x: Tensor, t: Tensor) -> Tensor:
        return self.coefficients(t)[0] * x

    def log_likelihood(self, clean: Tensor, t: Tensor) -> Tensor:
        """log p(y | x_t), by its mean, up to a constant: (b,)."""
        variance = self.coefficients(t)[1] + self.look**2
        return -((self.y - clean) ** 2 / (2 * variance)).sum(dim=(1, 2, 3))

    def posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t, y]."""
        gain, variance = self.coefficients(t)
        return gain * x + variance / (variance + self.look**2) * (self.y - gain * x)


@pytest.mark.parametrize("now", [10.0, 400.0, 950.0])
def test_gradients_give_the_exact_posterior_of_a_gaussian(now: float) -> None:
    """The sign is the one that climbs, and the size is right."""
    truth = Gaussian()
    x, t = inputs()[0], torch.full((ROWS,), now)
    clean = gradient_guided(truth.denoiser, lambda clean: truth.log_likelihood(clean, t), truth.schedule)
    close(clean(x, t), truth.posterior(x, t))
    noisy = noisy_gradient_guided(
        truth.denoiser, lambda x, t: truth.log_likelihood(truth.denoiser(x, t), t), truth.schedule
    )
    close(noisy(x, t), truth.posterior(x, t))


def test_a_sampler_with_gradients_nears_the_target() -> None:
    """Samplers switch gradients off; the guided denoiser switches them on for itself."""
    truth = Gaussian()
    noise = inputs()[0]

    def distance(scale: float) -> float:
        denoise = gradient_guided(
            truth.denoiser, lambda clean: -((clean - truth.y) ** 2).sum(dim=(1, 2, 3)), truth.schedule, scale=scale
        )
        return math.sqrt(float((ddim(denoise, noise, truth.schedule, 20) - truth.y).square().mean()))

    assert distance(0.2) < 0.7 * distance(0.0) < 0.7 * distance(-0.05)


def test_gradient_interval_and_shape() -> None:
    truth = Gaussian()
    x, t, _ = inputs()
    off = gradient_guided(truth.denoiser, lambda clean: clean.sum(), truth.schedule, interval=Interval(0, 100))
    close(off(x, t), truth.denoiser(x, t))
    with pytest.raises(UsageError, match="one a sample"):
        gradient_guided(truth.denoiser, lambda clean: clean.sum(), truth.schedule)(x, t)
