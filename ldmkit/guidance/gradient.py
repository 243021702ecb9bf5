"""Guidance by the gradient of a likelihood from outside: a classifier, an image loss (the paper, appendix C).

A step up the log-likelihood of y moves the score by its gradient: ``score + scale * grad log p(y | x_t)``, which is
``eps - scale * sigma * grad`` (Dhariwal & Nichol 2021, algorithm 2; the paper prints a plus, which would climb down) and
``x_0 + scale * sigma^2 / alpha * grad``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.errors import UsageError
from ldmkit.guidance.classifier_free import Interval, within
from ldmkit.schedules import Schedule


def gradient_guided(
    denoiser: X0Predictor,
    log_likelihood: Callable[[Tensor], Tensor],
    schedule: Schedule,
    *,
    scale: float = 1.0,
    interval: Interval | None = None,
) -> X0Predictor:
    """Climb ``log p(y | x_0)`` at the predicted clean sample; the gradient goes through the network (Chung et al. 2022, DPS).

    Args:
        denoiser: (x_t, t) -> x_0, differentiable in x_t.
        log_likelihood: x_0 (b, c, h, w) -> (b,), row by row; for an image loss, its negative; it may decode the latent.
        schedule: alpha and sigma.
        scale: of the gradient.
        interval: where guidance is on. sigma^2 / alpha is great where noise is nearly all: leave these steps out if it breaks.

    The result raises UsageError where the log-likelihood is not (b,).
    """

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            clean = denoiser(leaf, t)
            gradient = _gradient(log_likelihood(clean), leaf)
        return clean.detach() + scale * _factor(schedule, t, x) * gradient

    return denoise if interval is None else within(interval, denoise, denoiser)


def noisy_gradient_guided(
    denoiser: X0Predictor,
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    *,
    scale: float = 1.0,
    interval: Interval | None = None,
) -> X0Predictor:
    """Climb ``log p(y | x_t)`` of a classifier that was trained on noisy latents (Dhariwal & Nichol 2021, section 4).

    Args:
        log_likelihood: (x_t (b, c, h, w), t (b,)) -> (b,), row by row.
        denoiser, schedule, scale, interval: as for `gradient_guided`; nothing is differentiated through the denoiser.

    The result raises UsageError where the log-likelihood is not (b,).
    """

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            gradient = _gradient(log_likelihood(leaf, t), leaf)
        return denoiser(x, t) + scale * _factor(schedule, t, x) * gradient

    return denoise if interval is None else within(interval, denoise, denoiser)


Of = Literal["image", "latent", "noisy"]


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """What `LatentDiffusion.sample(likelihood=...)` climbs: a log-likelihood from outside, one number a row.

    Args:
        log: what to climb, (b, ...) -> (b,), row by row and differentiable. For an image loss, its negative.
        of: what `log` is given. ``image``: the decoded prediction of the clean picture, (b, c, h, w), about [-1, 1].
            ``latent``: the predicted clean latent. ``noisy``: the noisy latent and the timesteps, ``log(x_t, t)``, for a
            classifier that was trained on these; the network is not differentiated then.
        scale: of the gradient; 1 is Bayes' rule where `log` is a log-likelihood.
        interval: the fractions of the timesteps, from 0 (data) to 1 (noise), between which it is climbed.

    Raises UsageError for an unknown `of` and an interval that does not rise from 0 to 1.
    """

    log: Callable[..., Tensor]
    of: Of = "image"
    scale: float = 1.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.of not in get_args(Of):
            raise UsageError(f"a likelihood of {self.of!r}; there are {', '.join(get_args(Of))}")
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise UsageError(f"a likelihood's interval {list(self.interval)}: fractions rise from 0 to 1")

    def guide(self, denoiser: X0Predictor, schedule: Schedule, decode: Callable[[Tensor], Tensor]) -> X0Predictor:
        """`denoiser`, climbing. `decode`: scaled latents -> images, differentiable."""
        interval = None if self.interval is None else Interval.of_fraction(*self.interval, schedule)
        if self.of == "noisy":
            return noisy_gradient_guided(denoiser, self.log, schedule, scale=self.scale, interval=interval)

        def log_likelihood(clean: Tensor) -> Tensor:
            return self.log(decode(clean) if self.of == "image" else clean)

        return gradient_guided(denoiser, log_likelihood, schedule, scale=self.scale, interval=interval)


def _gradient(log_likelihoods: Tensor, x: Tensor) -> Tensor:
    if log_likelihoods.shape != x.shape[:1]:
        raise UsageError(
            f"a log-likelihood of shape {tuple(log_likelihoods.shape)}; one a sample, ({len(x)},), is needed"
        )
    # Rows are independent, so the gradient of the sum is each row's own.
    (gradient,) = torch.autograd.grad(log_likelihoods.sum(), x)
    return gradient


def _factor(schedule: Schedule, t: Tensor, like: Tensor) -> Tensor:
    alpha, sigma = schedule.alpha_sigma(t)
    return (sigma**2 / alpha).to(like)[:, None, None, None]
