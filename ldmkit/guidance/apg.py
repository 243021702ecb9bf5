"""Adaptive projected guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.errors import UsageError
from ldmkit.guidance.classifier_free import Branches, ConditionalDenoiser, Weights, check, combine, evaluate


def apg(
    denoiser: ConditionalDenoiser,
    branches: Branches,
    weights: Weights,
    *,
    parallel: float = 0.0,
    threshold: float | None = None,
    momentum: float = 0.0,
) -> X0Predictor:
    """Guidance without the part that oversaturates (Sadat et al. 2024, arXiv 2410.02416, algorithm 1).

    The guiding difference d = e_all - e_null is averaged over the steps, shortened, and split into what is parallel to
    the conditional prediction e_all and what is orthogonal; the result is ``e_all + (s - 1) (orthogonal + parallel share)``.
    With several branches, d is the difference that `weights` take, divided by its factor: the conditional weight less 1.

    Args:
        denoiser, branches, weights: as for `guided`.
        parallel: the share (their eta) of the parallel part that is kept; 1, with the other defaults, is `guided`.
        threshold: the greatest Euclidean norm of d per sample (their r); None is no bound.
        momentum: of the running sum ``d <- d + momentum * previous d`` (their beta, negative to push away from the past).

    The running sum lives in the denoiser and starts anew when the timestep rises, so make one denoiser for each sampling.
    Raises UsageError as `guided` does, and for a threshold that is not positive.
    """
    weights = check(branches, weights)
    if threshold is not None and not threshold > 0:
        raise UsageError(f"threshold={threshold:g}; it must be positive, or None")
    conditional = max(branches, key=len)
    run = [conditional, *(kept for kept in weights if kept != conditional)]
    factor = weights.get(conditional, 0.0) - 1 or 1.0
    average = _Average(momentum)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        predictions = evaluate(denoiser, x, t, [branches[kept] for kept in run])
        target = predictions[0]
        difference = (combine(predictions, [weights.get(kept, 0.0) for kept in run]) - target) / factor
        difference = average.update(difference, t)
        if threshold is not None:
            norm = difference.flatten(1).norm(dim=1)[:, None, None, None]
            difference = difference * (threshold / norm.clamp(min=threshold))
        along, across = split(difference, target)
        return target + factor * (across + parallel * along)

    return denoise


def split(difference: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """`difference` (b, c, h, w) per sample as a part parallel and one orthogonal to `direction`."""
    # In double precision, as the authors have it: the two are nearly parallel at the end of sampling.
    unit = torch.nn.functional.normalize(direction.double().flatten(1), dim=1)
    wide = difference.double().flatten(1)
    along = ((wide * unit).sum(dim=1, keepdim=True) * unit).view_as(difference).to(difference.dtype)
    return along, difference - along


class _Average:
    """The running sum of the differences of one sampling."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.total: Tensor | None = None
        self.t = float("inf")

    def update(self, difference: Tensor, t: Tensor) -> Tensor:
        if not self.momentum:
            return difference
        now = float(t.max())
        if self.total is not None and now <= self.t and self.total.shape == difference.shape:
            difference = difference + self.momentum * self.total
        self.total, self.t = difference, now
        return difference
