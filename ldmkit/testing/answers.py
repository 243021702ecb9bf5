"""A batch: what `encode` and `null` return on every canvas, masks, and empty input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmkit.conditioning import Canvas, Conditioning, Tensors
from ldmkit.conditioning.contract import fault_of, number_fault
from ldmkit.testing.subject import Subject, painted, ports, prepare, said, same


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
    """Ports, shapes, type, place, mask and numbers of one output, as training and sampling check them."""
    fault = fault_of(answer, subject.conditioner.emits, canvas, rows, null=who == "null") or number_fault(answer)
    if fault is not None:
        subject.fail(f"{who} on {painted(canvas)} returned {fault.text}", _sentence(fault.remedy))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


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
            if fault := number_fault(answer):
                subject.fail(f"encode of an empty {name} returned {fault.text}", _sentence(fault.remedy))


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
    """The first port in which two outputs differ by a bit, or None."""
    one, two = ports(first), ports(second)
    return next((port for port in one if port not in two or not same(one[port], two[port])), None)
