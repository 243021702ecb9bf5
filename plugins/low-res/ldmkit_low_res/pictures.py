"""Pictures as people have them -> tensors, and back."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldmkit.data import Field
from ldmkit.images import image_of, image_tensor, to_tensor

UNKNOWN = Field("image")


def read_picture(value: Any, channels: int, known: Field = UNKNOWN) -> Tensor:
    """A path, an image, a uint8 array (h, w) or (h, w, c), or a tensor (c, h, w) -> (channels, h, w) float in [-1, 1].

    Files are read as the data's own are (`known`: their range, their background). Raises `UsageError`.
    """
    if isinstance(value, Tensor):
        return image_tensor(value, channels)
    return to_tensor(image_of(value, known, channels))


def to_pil(picture: Tensor) -> Image.Image:
    """(c, h, w) in [-1, 1], with 1 or 3 channels -> a picture."""
    pixels = ((picture.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
