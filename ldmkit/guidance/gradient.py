"""Guidance by the gradient of a likelihood from outside: a classifier, an image loss (the paper, appendix C).

A step up the log-likelihood of y moves the score by its gradient: ``score + scale * grad log p(y | x_t)``, which is
``eps - scale * sigma * grad`` (Dhariwal & Nichol 2021, algorithm 2; the paper prints a plus, which would climb down) and
``x_0 + scale * sigma^2 / alpha * grad``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldmkit.diffusion import Denoiser
from ldmkit.errors import UsageError
from ldmkit.guidance.branches import Interval, within
from ldmkit.schedules import Schedule


def gradient_guided(
    denoiser: Denoiser,
    log_likelihood: Callable[[Tensor], Tensor],
    schedule: Schedule,
    *,
    scale: float = 1.0,
    interval: Interval | None = None,
) -> Denoiser:
    """Climb ``log p(y | x_0)`` at the predicted clean sample; the gradient goes through the network (Chung et al. 2022, DPS).

    Args:
        denoiser: (x_t, t) -> x_0, differentiable in x_t.
        log_likelihood: x_0 (b, c, h, w) -> (b,), row by row; for an image loss, its negative; it may decode the latent.
        schedule: alpha and sigma.
        scale: of the gradient.
        interval: where guidance is on. sigma^2 / alpha is great where noise is nearly all: leave these steps out if it breaks.
    """

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            clean = denoiser(leaf, t)
            gradient = _gradient(log_likelihood(clean), leaf)
        return clean.detach() + scale * _factor(schedule, t, x) * gradient

    return denoise if interval is None else within(interval, denoise, denoiser)


def noisy_gradient_guided(
    denoiser: Denoiser,
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    *,
    scale: float = 1.0,
    interval: Interval | None = None,
) -> Denoiser:
    """Climb ``log p(y | x_t)`` of a classifier that was trained on noisy latents (Dhariwal & Nichol 2021, section 4).

    Args:
        log_likelihood: (x_t (b, c, h, w), t (b,)) -> (b,), row by row.
        denoiser, schedule, scale, interval: as for `gradient_guided`; nothing is differentiated through the denoiser.
    """

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            gradient = _gradient(log_likelihood(leaf, t), leaf)
        return denoiser(x, t) + scale * _factor(schedule, t, x) * gradient

    return denoise if interval is None else within(interval, denoise, denoiser)


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
