"""What a person passes to `sample` and its kin, in the forms people write it."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import nn

from ldmkit.errors import UsageError

Size = int | tuple[int, int]  # a side of a square image, or (h, w), in pixels


def sides(size: Size | None) -> tuple[int, int] | None:
    """(h, w) of a size in pixels: one number is a square. Raises UsageError for anything else."""
    if size is None:
        return None
    pair = (size, size) if isinstance(size, Integral) else size
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(_is_whole(side) and side > 0 for side in pair):
        raise UsageError(f"size is {size!r}; give one whole number of pixels, or (height, width)")
    return int(pair[0]), int(pair[1])


def whole(name: str, value: int | None, least: int | None = None) -> int | None:
    """`value` as an int, from `least` up; None stays None. Raises UsageError, naming it, for what is no whole number."""
    if value is None:
        return None
    if not _is_whole(value) or (least is not None and value < least):
        allowed = "a whole number" + ("" if least is None else f", at least {least}")
        raise UsageError(f"{name} is {value!r}; it is {allowed}")
    return int(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def precision(*modules: nn.Module) -> torch.dtype | None:
    """The dtype of the first floating-point parameter of these modules; None where there is none."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return None
