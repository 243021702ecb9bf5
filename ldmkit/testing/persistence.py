"""A conditioner elsewhere: saved and loaded, in bfloat16, on meta, on an accelerator."""

from __future__ import annotations

from traceback import walk_tb

import torch

from ldmkit.conditioning import RESERVED, Conditioner, Tensors
from ldmkit.plugins import options
from ldmkit.testing.answers import check_answer, equal_answers
from ldmkit.testing.declaration import derived_arguments, recorded_options
from ldmkit.testing.subject import Subject, duplicate, said

# What torch says where a number of a tensor without memory is asked for.
NUMBERS_ON_META = ("cannot be called on meta tensors", "_local_scalar_dense", "data-dependent")


def check_round_trip(subject: Subject) -> None:
    """Made again from its options, and given its weights, it returns the same."""
    twin = _made_again(subject, "cpu")
    if twin is None:
        return
    try:
        twin.load_state_dict(subject.conditioner.state_dict())
    except RuntimeError as error:
        subject.fail(
            f"its weights do not fit a conditioner made from its options: {' '.join(str(error).split())[:300]}",
            "Every shape follows from the constructor's options: what is learned from data is returned by `fit` as one",
        )
    canvas = subject.canvas(subject.sizes[0])
    first = equal_answers(subject.encode(subject.rows, canvas), subject.encode(subject.rows, canvas, twin.eval()))
    second = equal_answers(subject.null(canvas), subject.null(canvas, twin))
    if different := first or second:
        subject.fail(
            f"saved and loaded it returns other {different}",
            "State that is neither an option nor a parameter is lost: register it as a buffer, or make it an option",
        )


def _made_again(subject: Subject, device: str) -> Conditioner | None:
    """From the options it was made with, by way of JSON; None where they are not known."""
    kind = type(subject.conditioner)
    recorded = recorded_options(subject.conditioner)
    if recorded is None:
        return None
    plain = {name: value for name, value in recorded.items() if name not in options.derived(kind)}
    try:
        arguments = options.model(kind, reserved=RESERVED).read(plain).arguments()
        with torch.device(device):
            return kind(**{**arguments, **derived_arguments(subject.conditioner)})
    except Exception as error:
        where = " on the meta device" if device == "meta" else ""
        subject.fail(
            f"it cannot be made again from its options{where}: {said(error)}",
            "Options are JSON values; __init__ reads no weights and no numbers out of tensors (that is `load_pretrained`)",
        )


def check_dtype(subject: Subject) -> None:
    """In bfloat16 it returns bfloat16."""
    twin = duplicate(subject.conditioner).to(torch.bfloat16)
    remedy = "Convert what was prepared with .to(canvas.dtype); name no dtype"
    for size in subject.sizes:
        canvas = subject.canvas(size, dtype=torch.bfloat16)
        answer = subject.encode(subject.rows, canvas, twin, remedy)
        check_answer(subject, answer, canvas, len(subject.rows), "encode")
        check_answer(subject, subject.null(canvas, twin, remedy), canvas, 1, "null")


def check_meta(subject: Subject) -> None:
    """Without memory, for `ldmkit plan`: shapes alone.

    A library's encoder that looks at a number on its way cannot be asked there (those of transformers look whether a mask hides
    anything): `plan` counts what it can, and training does not mind.
    """
    _made_again(subject, "meta")
    twin = duplicate(subject.conditioner).to("meta")
    if any(_library_looks_at_numbers(subject, twin, rows) for rows in (subject.rows, None)):
        return
    _check_on(
        subject,
        "meta",
        "Shapes follow from shapes: no .item(), no `if tensor:`, no boolean indexing, no numpy in `encode`",
    )


def _library_looks_at_numbers(subject: Subject, conditioner: Conditioner, rows: list[Tensors] | None) -> bool:
    """Whether code that is not the plugin's own asks for a number of a tensor without memory."""
    canvas = subject.canvas(subject.sizes[0], device="meta")
    batch = None if rows is None else {name: value.to("meta") for name, value in subject.collate(rows).items()}
    try:
        conditioner(batch, canvas)
    except Exception as error:
        own = type(conditioner).__module__.partition(".")[0]
        callers = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in walk_tb(error.__traceback__)]
        asking = next((name for name in reversed(callers) if name != "torch"), own)
        return asking != own and any(text in str(error) for text in NUMBERS_ON_META)
    return False


def check_accelerator(subject: Subject) -> None:
    """On the accelerator of this machine, where there is one."""
    if not torch.accelerator.is_available():
        return
    device = torch.accelerator.current_accelerator()
    _check_on(subject, str(device), "Make new tensors with `canvas.zeros` or device=canvas.device")


def _check_on(subject: Subject, device: str, remedy: str) -> None:
    twin = duplicate(subject.conditioner).to(device)
    for size in subject.sizes:
        canvas = subject.canvas(size, device=device)
        answer = subject.encode(subject.rows, canvas, twin, remedy)
        check_answer(subject, answer, canvas, len(subject.rows), "encode")
        check_answer(subject, subject.null(canvas, twin, remedy), canvas, 1, "null")
