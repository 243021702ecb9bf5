"""CFG++: guidance that stays on the data manifold."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.errors import UsageError
from ldmkit.guidance.classifier_free import Branches, ConditionalDenoiser, Weights, check, combine, evaluate


class Levels(Protocol):
    """The noise levels of a sampling: n falling timesteps; alpha and sigma at them and where the last step ends (n + 1)."""

    @property
    def timesteps(self) -> tuple[float, ...]: ...
    @property
    def alpha(self) -> tuple[float, ...]: ...
    @property
    def sigma(self) -> tuple[float, ...]: ...


def plus_plus(denoiser: ConditionalDenoiser, branches: Branches, weights: Weights, levels: Levels) -> X0Predictor:
    """CFG++ (Chung et al. 2024, arXiv 2406.08070, algorithm 2): a step to the guided x_0 with the null branch's noise.

    Their DDIM step ``x_s = alpha_s G + sigma_s eps_null``, G the guided x_0, is an ordinary DDIM step whose denoiser returns
    ``e_null + k (G - e_null)`` with ``k = alpha_s sigma_t / (alpha_s sigma_t - sigma_s alpha_t)``. So no sampler needs to
    know, but the denoiser must know where the step ends: hence `levels`, the grid the sampler is given too.

    Args:
        denoiser, branches: as for `guided`.
        weights: as for `guided`; CFG++ scales lie in [0, 1], so ``parse(0.6, ...)`` is a usual one.
        levels: the sampler's own grid: ``grid = make_grid(schedule, steps); ddim(plus_plus(..., grid), noise, schedule, grid)``.

    Exact for DDIM with eta 0, and for Euler's method where that is the same step. Raises UsageError at a timestep that is
    not in `levels` (a sampler that evaluates between them), and where the null branch is missing.
    """
    weights = check(branches, weights)
    null = frozenset.intersection(*branches)
    if null not in branches:
        raise UsageError("CFG++ takes its noise from the null branch, which was not given")
    run = [null, *(kept for kept in weights if kept != null)]

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        predictions = evaluate(denoiser, x, t, [branches[kept] for kept in run])
        target = combine(predictions, [weights.get(kept, 0.0) for kept in run])
        i = _step(levels, t)
        forward = levels.alpha[i + 1] * levels.sigma[i]
        k = forward / (forward - levels.sigma[i + 1] * levels.alpha[i])
        return predictions[0] + k * (target - predictions[0])

    return denoise


def _step(levels: Levels, t: Tensor) -> int:
    """Which step starts at t (b,), the same in every row."""
    low, high = float(t.min()), float(t.max())
    nearest = min(range(len(levels.timesteps)), key=lambda i: abs(levels.timesteps[i] - low))
    # t is float32 in most samplers, the levels are float64.
    if max(abs(levels.timesteps[nearest] - end) for end in (low, high)) > 1e-3:
        raise UsageError(
            f"CFG++ was asked at timesteps {low:g} to {high:g}, where no step of its grid starts",
            hint="Use it with a sampler that evaluates once a step, such as ddim, on the same grid.",
        )
    return nearest
