"""A camera's sensor: what its noise looks like after the camera has made a picture of it.

After Brooks et al. 2019, "Unprocessing images for learned raw denoising" (arXiv 1811.11127): back to linear light and sensor
gains, Bayer mosaic, shot and read noise, then forward again. The released code names this stage, but has no model for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GAMMA = 2.2


def camera(picture: Tensor, *, gains: tuple[float, float, float], shot: float, noise: Tensor) -> Tensor:
    """(3, h, w) in [0, 1] -> the same picture through a sensor.

    Args:
        gains: white balance of red, green and blue.
        shot: variance of the noise at full light (plus a small share of it at none).
        noise: (h, w) unit normal, one draw a sensor pixel.
    """
    balance = torch.tensor(gains)[:, None, None]
    linear = picture.clamp(0.0, 1.0) ** GAMMA / balance
    sites = _bayer(picture.shape[-2], picture.shape[-1])
    raw = (linear * sites).sum(0)
    raw = raw + noise * (shot * raw + 0.1 * shot).sqrt()
    restored = _demosaic(raw.clamp(0.0, 1.0), sites) * balance
    return restored.clamp(0.0, 1.0) ** (1.0 / GAMMA)


def _bayer(height: int, width: int) -> Tensor:
    """(3, h, w), 1 where the sensor sees that colour: RGGB."""
    sites = torch.zeros(3, height, width)
    sites[0, 0::2, 0::2] = 1.0
    sites[1, 0::2, 1::2] = 1.0
    sites[1, 1::2, 0::2] = 1.0
    sites[2, 1::2, 1::2] = 1.0
    return sites


def _demosaic(raw: Tensor, sites: Tensor) -> Tensor:
    """Bilinear: every colour's mean over the neighbours that see it, those at the edge included."""
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])[None, None]
    seen = F.conv2d((raw * sites)[:, None], kernel, padding=1)
    weight = F.conv2d(sites[:, None], kernel, padding=1)
    # a picture of one row or column has colours that no site sees
    return torch.where(weight > 0, seen / weight.clamp(min=1e-6), raw)[:, 0]
