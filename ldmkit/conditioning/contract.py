"""What `encode` and `null` must return: one check, for training and sampling (`Examiner`) and for `ldmkit.testing`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldmkit.conditioning.types import Canvas, Conditioning, Ports

PORTS = ("tokens", "vector", "concat")
Shape = tuple[int | None, ...]  # None: any length


@dataclass(frozen=True)
class Fault:
    """What is wrong with a conditioner's output, as what was returned and what was expected; and what to write instead."""

    text: str
    remedy: str


def fault_of(answer: Conditioning, emits: Ports, canvas: Canvas, rows: int, *, null: bool = False) -> Fault | None:
    """The first fault in ports, shapes, dtypes, devices and mask of an output for `rows` rows. Reads no number."""
    for port, shape in promised(emits, canvas, rows).items():
        value = getattr(answer, port)
        got = tuple(value.shape) if isinstance(value, Tensor) else None if value is None else type(value).__name__
        if not _fits(got, shape):
            text = f"{port} of shape {got}; expected {shown(shape)} from emits = {emits} on a canvas with grid {canvas.grid}"
            return Fault(text, _remedy(port, shape, value, null=null))
        if value is not None and (found := _place_fault(port, value, canvas)):
            return found
    if answer.tokens is not None:
        length = answer.tokens.shape[1]
        if length < 1 or (emits.length and length > emits.length):
            most = f"length={emits.length}"
            return Fault(f"{length} tokens; emits says {most}", "emit at least 1, and at most `length`")
    return None if answer.mask is None else _mask_fault(answer, canvas)


def number_fault(answer: Conditioning) -> Fault | None:
    """The first fault in the numbers of an output: what is not finite, a row that attends to nothing. Waits for the device."""
    for port in PORTS:
        value = getattr(answer, port)
        if value is not None and not is_finite(value):
            return Fault(
                f"{port} with NaN or infinite values",
                "look for a division by 0 or a log of 0, and for such values in the data",
            )
    if answer.mask is not None and not answer.mask.is_meta and not bool(answer.mask.any(1).all()):
        return Fault(
            "a mask with a row that attends to nothing (all False)",
            "True means attend (is the mask inverted?), and every row keeps at least one True, the empty input's too",
        )
    return None


def promised(emits: Ports, canvas: Canvas, rows: int) -> dict[str, Shape | None]:
    """Port -> the shape `emits` promises (None: any length), or None for a port that is not fed."""
    return {
        "tokens": (rows, None, emits.tokens) if emits.tokens else None,
        "vector": (rows, emits.vector) if emits.vector else None,
        "concat": (rows, emits.concat, *canvas.grid) if emits.concat else None,
    }


def shown(shape: Shape | None) -> str:
    """`(2, length, 4)`."""
    if shape is None:
        return "none"
    return "(" + ", ".join("length" if side is None else str(side) for side in shape) + ")"


def is_finite(value: Tensor) -> bool:
    """Whether all numbers of a tensor of any shape are finite; True on meta, and for integers."""
    return value.is_meta or not value.is_floating_point() or bool(value.isfinite().all())


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`."""
    return str(dtype).removeprefix("torch.")


def _fits(got: Any, expected: Shape | None) -> bool:
    if got is None or expected is None:
        return got is None and expected is None
    if not isinstance(got, tuple) or len(got) != len(expected):
        return False
    return all(e is None or e == g for g, e in zip(got, expected, strict=True))


def _remedy(port: str, shape: Shape | None, value: Any, *, null: bool) -> str:
    if value is None or shape is None:
        return "return every port in `emits`, and no other"
    if null:
        return "the null is ONE row, on the same ports and of the same width as what `encode` returns"
    if port == "concat":
        return "resize spatial input to `canvas.grid`, whatever it is (F.interpolate(x, canvas.grid)); the width is in `emits`"
    if port == "vector":
        return "a vector is (batch, width); the width is what `emits` says"
    return "tokens are (batch, length, width); the width is what `emits` says"


def _place_fault(port: str, value: Tensor, canvas: Canvas) -> Fault | None:
    device = canvas.device.type
    mixed = device != "meta" and torch.is_autocast_enabled(device) and value.is_floating_point()
    if value.dtype != canvas.dtype and not mixed:
        return Fault(
            f"{port} in {dtype_name(value.dtype)}; the canvas is {dtype_name(canvas.dtype)}",
            "convert with .to(canvas.dtype); name no dtype",
        )
    if value.device.type != canvas.device.type:
        return Fault(
            f"{port} on {value.device}; the canvas is on {canvas.device}",
            "make new tensors with `canvas.zeros` or device=canvas.device",
        )
    return None


def _mask_fault(answer: Conditioning, canvas: Canvas) -> Fault | None:
    mask: Any = answer.mask
    tokens = answer.tokens
    right = (
        isinstance(mask, Tensor)
        and tokens is not None
        and mask.shape == tokens.shape[:2]
        and mask.dtype == torch.bool
        and mask.device.type == canvas.device.type
    )
    if right:
        return None
    got = f"{tuple(mask.shape)} {dtype_name(mask.dtype)}" if isinstance(mask, Tensor) else type(mask).__name__
    beside = "no tokens" if tokens is None else f"tokens {tuple(tokens.shape)}"
    return Fault(
        f"a mask {got} beside {beside}; expected (batch, length) bool on {canvas.device}",
        "the mask is bool, (batch, length) of the tokens, True where attended",
    )
