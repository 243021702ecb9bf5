"""Interpolation between noises (Shoemake 1985)."""

from __future__ import annotations

import torch
from torch import Tensor


def slerp(start: Tensor, end: Tensor, weight: float | Tensor) -> Tensor:
    """Spherical interpolation, row by row: from `start` at weight 0 to `end` at 1, with the norm in between as between.

    Args:
        start, end: (b, ...), or one of them (1, ...). A straight line between two noises would pass where no noise is.
        weight: one number, or (b,); several weights go from one noise to the other.

    Returns (b, ...); rows that point the same way (within 1e-3 of it) are interpolated on the line.
    """
    w = torch.as_tensor(weight, dtype=torch.float64, device=start.device).reshape(-1, 1)
    rows = max(len(start), len(end), len(w))
    start, end = (side.expand(rows, *side.shape[1:]) for side in (start, end))
    a, b = start.flatten(1).double(), end.flatten(1).double()
    length_a, length_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    w = w.expand(rows, 1)
    cosine = ((a * b).sum(1, keepdim=True) / (length_a * length_b).clamp(min=1e-12)).clamp(-1, 1)
    angle = torch.acos(cosine)
    straight = torch.sin(angle) < 1e-3
    sine = torch.where(straight, torch.ones_like(angle), torch.sin(angle))
    turned = torch.sin((1 - w) * angle) / sine * a + torch.sin(w * angle) / sine * b
    mixed = torch.where(straight, torch.lerp(a, b, w), turned)
    return mixed.reshape(len(mixed), *start.shape[1:]).to(start.dtype)
