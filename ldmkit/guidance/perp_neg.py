"""Perpendicular negative prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldmkit.conditioning import Conditioning
from ldmkit.diffusion import X0Predictor
from ldmkit.guidance.apg import split
from ldmkit.guidance.classifier_free import ConditionalDenoiser, evaluate


def perp_neg(
    denoiser: ConditionalDenoiser,
    positive: Conditioning,
    null: Conditioning,
    negatives: Sequence[tuple[Conditioning, float]],
    *,
    scale: float,
) -> X0Predictor:
    """Guide away from negatives without unlearning what they share with the positive (Armandpour et al. 2023, eq. 8).

    ``e_null + scale (d - sum of w_i p_i)``: d is the positive prediction less the null one, p_i the part of the i-th negative's
    difference that is orthogonal to d, w_i > 0 its strength. Without negatives this is `guided`. One batched call a step.

    Args:
        denoiser: (x_t, t, conditioning) -> x_0.
        positive, null: what the two branches read.
        negatives: conditionings and their strengths.
        scale: of the guidance, 1 is the positive branch alone where there are no negatives.
    """
    given = [positive, null, *(conditioning for conditioning, _ in negatives)]

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        towards, base, *others = evaluate(denoiser, x, t, given)
        main = towards - base
        push = main
        for other, (_, strength) in zip(others, negatives, strict=True):
            _, across = split(other - base, main)
            push = torch.add(push, across, alpha=-strength)
        return torch.add(base, push, alpha=scale)

    return denoise
