"""Pictures as people have them -> tensors, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ldmkit.errors import UsageError


def read_picture(value: Any, channels: int) -> Tensor:
    """A path, a picture, a uint8 array (h, w) or (h, w, c), or a tensor (c, h, w) -> (channels, h, w) float in [-1, 1].

    Tensors are uint8 in 0 to 255 or float in [-1, 1]. Pictures are turned as their EXIF says, and laid on white where they are
    transparent. Raises `UsageError`.
    """
    if isinstance(value, str | Path):
        value = _open(Path(value).expanduser())
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8:
            raise UsageError(
                f"an array holds uint8; given: {value.dtype}", hint="float pictures are tensors (c, h, w) in [-1, 1]"
            )
        if value.ndim not in (2, 3) or (value.ndim == 3 and value.shape[2] not in (1, 3, 4)):
            raise UsageError(f"an array is (h, w), or (h, w, c) with 1, 3 or 4 channels; given: {value.shape}")
        value = Image.fromarray(value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value)
    if isinstance(value, Image.Image):
        return _from_pil(value, channels)
    if isinstance(value, Tensor):
        return _from_tensor(value, channels)
    raise UsageError(
        f"a low-resolution picture is a path, a PIL image, an array or a tensor, not {type(value).__name__}"
    )


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (FileNotFoundError, IsADirectoryError) as cause:
        raise UsageError(f"there is no picture at {path}") from cause
    except (UnidentifiedImageError, OSError) as cause:
        raise UsageError(f"{path} cannot be read as a picture: {cause}") from cause


def _from_pil(picture: Image.Image, channels: int) -> Tensor:
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    pixels = np.array(picture.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).float() / 127.5 - 1.0


def _from_tensor(picture: Tensor, channels: int) -> Tensor:
    if picture.ndim != 3 or picture.shape[0] != channels or not picture.numel():
        raise UsageError(f"a tensor holds ({channels}, h, w); given: {tuple(picture.shape)}")
    if picture.dtype == torch.uint8:
        return picture.float() / 127.5 - 1.0
    if not picture.is_floating_point() or not bool((picture.abs() <= 1.0 + 1e-3).all()):
        raise UsageError(
            "a float tensor holds values in [-1, 1], a uint8 one 0 to 255; "
            f"given: {picture.dtype} from {picture.min().item():g} to {picture.max().item():g}"
        )
    return picture.float()


def to_pil(picture: Tensor) -> Image.Image:
    """(c, h, w) in [-1, 1], with 1 or 3 channels -> a picture."""
    pixels = ((picture.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
