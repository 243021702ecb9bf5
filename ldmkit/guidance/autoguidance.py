"""Guidance by a worse model."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.guidance.classifier_free import Interval, within


def autoguided(good: X0Predictor, bad: X0Predictor, *, scale: float, interval: Interval | None = None) -> X0Predictor:
    """``bad + scale (good - bad)`` (Karras et al. 2024, arXiv 2406.02507, eq. 4), scale 1 is `good` alone.

    Args:
        good: the model, conditioned, possibly guided itself.
        bad: a smaller or less trained model under the same conditions.
        scale: how far beyond `good`.
        interval: where guidance is on; outside, `good` runs alone.
    """
    if scale == 1:
        return good

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(bad(x, t), good(x, t), scale)

    return denoise if interval is None else within(interval, denoise, good)
