"""Inpainting with any sampler: a denoiser that knows part of the answer is a denoiser."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.errors import UsageError


def masked(denoiser: X0Predictor, known: Tensor, mask: Tensor) -> X0Predictor:
    """`denoiser`, with its x_0 replaced by `known` where `mask` is 1.

    The sampler then carries the known part along its own exact noisy path, and returns it untouched. Cheap, deterministic and
    for every sampler; `repaint` makes the two parts agree better.

    Args:
        denoiser: (x_t, t) -> x_0.
        known: (b, c, h, w) or (1, c, h, w), clean latents.
        mask: broadcasts against it, in [0, 1]; 1 keeps, 0 generates.

    Raises UsageError for a mask outside [0, 1].
    """
    _check(mask)

    def denoise(noisy: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(denoiser(noisy, t), known.to(noisy), mask.to(noisy))

    return denoise


def _check(mask: Tensor) -> None:
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise UsageError(
            f"a mask from {float(mask.min()):g} to {float(mask.max()):g}: it lies in [0, 1], 1 keeps and 0 generates"
        )
