"""The sinusoidal embedding of the timestep."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def timestep_embedding(t: Tensor, width: int, *, period: float = 10_000.0) -> Tensor:
    """Embed timesteps t (b,), integer or fractional, as (b, width) float32: cosines first, then sines.

    Frequencies are ``period ** (-i / (width / 2))`` (Vaswani et al. 2017, section 3.5, in the order and with the
    spacing of Dhariwal & Nichol 2021, which the released models were trained with). `width` is even.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    # Multiplied before divided, as the released models had it: at t = 1000 a rounding here is seen in the sixth digit.
    angles = t.float()[:, None] * torch.exp(-math.log(period) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
