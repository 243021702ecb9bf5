"""Embedded colour profiles: what a file's numbers look like, in sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

UNCHANGED = 2  # levels of 255 by which a profile that is sRGB, rounded in its own way, differs from it
SPACES = {
    "RGB": "RGB ",
    "CMYK": "CMYK",
    "L": "GRAY",
    "LAB": "Lab ",
}  # Pillow's mode -> the ICC signature of its colours


def to_srgb(image: Image.Image) -> Image.Image:
    """The image as its embedded profile says it looks, in sRGB; as it is where there is no profile, or a broken one.

    "RGB", "CMYK", "L" and "LAB" become "RGB" where a profile changes anything; transparency stays. Relative colorimetric, with
    black point compensation (ICC.1:2022, section 6.2).
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile or image.mode in ("1", "F", "I") or image.mode.startswith("I;"):
        return image
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    colours = image.convert(image.mode[:-1]) if alpha is not None else image
    transform = _transform(profile, colours.mode)
    if transform is None:
        return image
    seen: Image.Image = ImageCms.applyTransform(colours, transform)  # type: ignore[assignment]  # None where in place
    seen.info = {key: value for key, value in image.info.items() if key != "icc_profile"}
    if alpha is not None:
        seen.putalpha(alpha)
    return seen


@lru_cache(maxsize=16)  # a camera writes one profile into all its files
def _transform(profile: bytes, mode: str) -> Any | None:
    """The way to sRGB; None for a profile that is broken, of other colours than the image's, or sRGB itself."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != SPACES.get(mode):
            return None
        made = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return made if _changes(made, mode) else None


def _changes(transform: Any, mode: str) -> bool:
    """Whether any of a lattice of colours looks other than it is written."""
    if mode not in ("RGB", "L"):
        return True
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    probe = Image.fromarray(lattice if mode == "RGB" else levels[None])
    seen = ImageCms.applyTransform(probe, transform)
    difference = np.asarray(seen, dtype=int) - np.asarray(probe.convert("RGB"), dtype=int)
    return bool(np.abs(difference).max() > UNCHANGED)
