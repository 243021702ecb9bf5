"""A batch: what `encode` and `null` answer on every canvas, masks, and empty input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmkit.conditioning import Canvas, Conditioning, Tensors
from ldmkit.testing.subject import PORTS, Subject, painted, ports, prepare, said, same


def check_encode(subject: Subject) -> None:
    """Every sample alone and all together, on every canvas, match `emits`."""
    for size in subject.sizes:
        canvas = subject.canvas(size)
        for rows in [[row] for row in subject.rows] + [subject.rows + subject.rows[:1]]:
            check_answer(subject, subject.encode(rows, canvas), canvas, len(rows), "encode")


def check_null(subject: Subject) -> None:
    """One row on the same ports."""
    for size in subject.sizes:
        canvas = subject.canvas(size)
        check_answer(subject, subject.null(canvas), canvas, 1, "null")


def check_answer(subject: Subject, answer: Conditioning, canvas: Canvas, rows: int, who: str) -> None:
    """Ports, shapes, type, place and numbers of one answer."""
    emits = subject.conditioner.emits
    where = f"{who} on {painted(canvas)}"
    for port in PORTS:
        value, width = getattr(answer, port), getattr(emits, port)
        if (value is not None) != (width > 0):
            what = "returned no" if value is None else "returned"
            subject.fail(
                f"{where} {what} {port}, and emits is {emits}", "Answer on every port in `emits`, and on no other"
            )
        if value is None:
            continue
        _check_shape(subject, port, value, canvas, rows, where)
        if value.dtype != canvas.dtype:
            subject.fail(
                f"{where} returned {port} in {str(value.dtype)[6:]}; the canvas is {str(canvas.dtype)[6:]}",
                "Convert with .to(canvas.dtype); name no dtype",
            )
        if value.device.type != canvas.device.type:
            subject.fail(
                f"{where} returned {port} on {value.device}",
                "Make new tensors with `canvas.zeros` or device=canvas.device",
            )
        if value.device.type != "meta" and not bool(value.isfinite().all()):
            subject.fail(
                f"{where} returned {port} with NaN or infinite values", "Look for a division by 0 or a log of 0"
            )
    _check_mask(subject, answer, where)


def _check_shape(subject: Subject, port: str, value: Tensor, canvas: Canvas, rows: int, where: str) -> None:
    emits = subject.conditioner.emits
    given = tuple(value.shape)
    if port == "concat":
        expected: tuple[Any, ...] = (rows, emits.concat, *canvas.grid)
        remedy = "Resize spatial input to `canvas.grid`, whatever it is (F.interpolate(x, canvas.grid)); the width is in `emits`"
    elif port == "vector":
        expected, remedy = (rows, emits.vector), "The width is what `emits` says"
    else:
        expected, remedy = (
            (rows, "length", emits.tokens),
            "Tokens are (batch, length, width); the width is what `emits` says",
        )
    if len(given) != len(expected) or any(isinstance(e, int) and e != g for e, g in zip(expected, given, strict=True)):
        if where.startswith("null"):
            remedy = "The null is ONE row, on the same ports and of the same width as what `encode` answers"
        shape = ", ".join(map(str, expected))
        subject.fail(f"{where} returned {port} of shape {given}; ({shape}) is needed", remedy)
    if port == "tokens" and (given[1] < 1 or (emits.length and given[1] > emits.length)):
        subject.fail(
            f"{where} returned {given[1]} tokens; emits says length={emits.length}",
            "Emit at least 1, and at most `length`",
        )


def _check_mask(subject: Subject, answer: Conditioning, where: str) -> None:
    mask = answer.mask
    if mask is None:
        return
    if answer.tokens is None or mask.shape != answer.tokens.shape[:2] or mask.dtype != torch.bool:
        tokens = "no tokens" if answer.tokens is None else f"tokens {tuple(answer.tokens.shape)}"
        subject.fail(
            f"{where} returned a mask {tuple(mask.shape)} of {str(mask.dtype)[6:]} beside {tokens}",
            "The mask is bool, (batch, length) of the tokens",
        )
    if mask.device.type != "meta" and not bool(mask.any(1).all()):
        subject.fail(
            f"{where} returned a mask with a row that attends to nothing (all False)",
            "True means attend (is the mask inverted?), and every row keeps at least one True, the empty input's too",
        )


def check_mask(subject: Subject) -> None:
    """What is attended differs between unlike samples, not only what is hidden."""
    canvas = subject.canvas(subject.sizes[0])
    answer = subject.encode(subject.rows, canvas)
    if answer.tokens is None or answer.mask is None:
        return
    for other in range(1, len(subject.rows)):
        attended = answer.mask[0] & answer.mask[other]
        hidden = ~answer.mask[0] & ~answer.mask[other]
        difference = (answer.tokens[0] - answer.tokens[other]).abs().amax(-1)
        if bool((difference[hidden] > 0).any()) and bool(attended.any()) and not bool((difference[attended] > 0).any()):
            subject.fail(
                "unlike samples differ only in the tokens that the mask hides: the mask seems inverted",
                "True means attend, False padding; `pad_stack` returns it so",
            )


def check_empty(subject: Subject) -> None:
    """Empty text, an empty list, a blank picture: refused with a ValueError, or encoded to finite numbers."""
    for name in subject.conditioner.reads:
        empty = _emptied(subject.sample[name])
        if empty is None:
            continue
        row = _prepared(subject, {**_plain(subject), name: empty}, name)
        if row is None:
            continue
        for size in subject.sizes:
            answer = subject.encode([row], subject.canvas(size))
            for port, value in ports(answer).items():
                if not bool(value.isfinite().all()):
                    subject.fail(
                        f"encode returned {port} with NaN or infinite values for an empty {name} ({_word(empty)})",
                        "Look for a mean over nothing or a division by 0, or refuse it in `prepare` with a ValueError",
                    )
            _check_mask(subject, answer, f"encode of an empty {name}")


def _prepared(subject: Subject, sample: Mapping[str, Any], name: str) -> Tensors | None:
    try:
        return prepare(subject.conditioner, sample)
    except ValueError:
        return None
    except Exception as error:
        subject.fail(
            f"prepare raised {said(error)} on an empty {name} ({_word(sample[name])})",
            "Prepare it, or refuse it with a ValueError that says what is allowed",
        )


def _plain(subject: Subject) -> dict[str, Any]:
    return {name: subject.sample[name] for name in subject.sample}


def _emptied(value: Any) -> Any:
    """The empty value of the same kind, or None where there is none."""
    if isinstance(value, str | list | tuple):
        return type(value)()
    if isinstance(value, Tensor) and value.ndim:
        return torch.zeros_like(value)
    if isinstance(value, np.ndarray) and value.ndim:
        return np.zeros_like(value)
    return None


def _word(value: Any) -> str:
    return "all zeros" if isinstance(value, Tensor | np.ndarray) else repr(value)


def equal_answers(first: Conditioning, second: Conditioning) -> str | None:
    """The first port in which two answers differ by a bit, or None."""
    one, two = ports(first), ports(second)
    return next((port for port in one if port not in two or not same(one[port], two[port])), None)
