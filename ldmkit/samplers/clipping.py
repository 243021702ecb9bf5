"""Bounds on the predicted x_0: clipping (Ho et al. 2020) and dynamic thresholding (Saharia et al. 2022, section 2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldmkit.diffusion import X0Predictor
from ldmkit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class X0Range:
    """x_0 to [-s, s], with s = `limit`.

    With a `quantile`, s is that quantile of the row's |x_0|, from 1 to `limit`, and x_0 is divided by it afterwards.
    """

    limit: float = 1.0
    quantile: float | None = None

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise UsageError(f"x_0 clipped to {self.limit:g}: the limit is above 0; 1 is that of images")
        if self.quantile is not None and not (0 < self.quantile <= 1 and self.limit >= 1):
            raise UsageError(
                f"x_0 thresholded at the quantile {self.quantile:g}, at most {self.limit:g}: a quantile in (0, 1] "
                "(0.995 is usual) and a maximum of at least 1"
            )

    def __call__(self, x0: Tensor) -> Tensor:
        """x_0 (b, ...) within the bound, of its shape and dtype."""
        if self.quantile is None:
            return x0.clamp(-self.limit, self.limit)
        shape = (-1, *(1 for _ in x0.shape[1:]))
        # torch.quantile refuses more than 2^24 numbers; a sorted row gives the same.
        size = x0.abs().flatten(1).double().sort(1).values
        place = self.quantile * (size.shape[1] - 1)
        low = int(place)
        high = min(low + 1, size.shape[1] - 1)
        scale = torch.lerp(size[:, low], size[:, high], place - low).clamp(1.0, self.limit).to(x0.dtype).view(shape)
        return x0.clamp(-scale, scale) / scale


@dataclass(frozen=True)
class Clipped:
    """A denoiser whose x_0 is bounded. `unbounded` is the one inside."""

    unbounded: X0Predictor
    bound: X0Range

    def __call__(self, noisy: Tensor, t: Tensor) -> Tensor:
        return self.bound(self.unbounded(noisy, t))


Clip = bool | float | Mapping[str, Any] | None


def clipped(denoiser: X0Predictor, clip: Clip) -> X0Predictor:
    """`denoiser` with its x_0 bounded; for samplers of images, whose range is known.

    Args:
        denoiser: (x_t, t) -> x_0.
        clip: True for [-1, 1], a number for [-r, r], ``{"quantile": 0.995, "max": 1.0}`` for dynamic thresholding; False or None
            bounds nothing.

    Raises UsageError for a bound that is none.
    """
    if clip is None or clip is False:
        return denoiser
    return Clipped(denoiser, bound_of(clip))


def bound_of(clip: bool | float | Mapping[str, Any]) -> X0Range:
    """The bound of a recipe's `clip`. Raises UsageError."""
    if isinstance(clip, Mapping):
        given = {"quantile": 0.995, "max": 1.0, **clip}
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in given.values())
        if set(given) == {"quantile", "max"} and numbers:
            return X0Range(limit=given["max"], quantile=given["quantile"])
    elif isinstance(clip, int | float):
        return X0Range(limit=float(clip))
    raise UsageError(f"clip {clip!r}: it is true (to [-1, 1]), a number, or {{quantile: 0.995, max: 1.0}}")
