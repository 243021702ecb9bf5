"""How a conditioner behaves: no chance, no side effects, rows alone, gradients, and what it shows to people."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, Tensors
from ldmkit.conditioning.checks import process
from ldmkit.testing.answers import equal_answers
from ldmkit.testing.preparation import unlike_rows
from ldmkit.testing.subject import Subject, clone, close, duplicate, global_seed, ports, said, same


def check_deterministic(subject: Subject) -> None:
    """In eval mode `encode` and `null` know no chance."""
    canvas = subject.canvas(subject.sizes[0])

    def ask(who: str, seed: int) -> Conditioning:
        with global_seed(seed):
            return subject.null(canvas) if who == "null" else subject.encode(subject.rows, canvas)

    for who in ("encode", "null"):
        answers = (ask(who, 1), ask(who, 2))
        if different := equal_answers(*answers):
            subject.fail(
                f"{who} is random in eval mode: {different} differs between two calls",
                "All randomness belongs in `prepare`, from its generator; dropout layers are off in eval mode by themselves",
            )


def check_side_effects(subject: Subject) -> None:
    """Nothing outside is changed: not the batch, not the process."""
    canvas = subject.canvas(subject.sizes[0])
    batch, before = subject.collate(subject.rows), process()
    kept = clone(batch)
    subject.conditioner.encode(batch, canvas)
    subject.conditioner.null(canvas)
    if changed := [name for name, value in kept.items() if name not in batch or not same(value, batch[name])]:
        subject.fail(
            f"encode changed the batch's {changed[0]}", "It is used again: work on a copy (no `x *= ...`, no `pop`)"
        )
    for name, value in process().items():
        if value != before[name]:
            subject.fail(f"encode changed {name} from {before[name]} to {value}", "Leave the process as it was found")


def check_rows(subject: Subject) -> None:
    """Row i depends on row i alone: each is the same alone, beside others, and in another order."""
    rows = unlike_rows(subject.rows)
    canvas = subject.canvas(subject.sizes[-1])
    for order in (list(range(len(rows))), list(range(len(rows)))[::-1]):
        together = subject.encode([rows[index] for index in order], canvas)
        for place, index in enumerate(order):
            alone = subject.encode([rows[index]], canvas)
            _compare_row(subject, alone, together, place)


def _compare_row(subject: Subject, alone: Conditioning, together: Conditioning, place: int) -> None:
    remedy = "Row i depends on row i alone: no statistics over the batch (batch norm, mean over dim 0)"
    for port in ("vector", "concat"):
        one, row = getattr(alone, port), getattr(together, port)
        if one is not None and not close(row[place], one[0]):
            subject.fail(f"{port} of a sample depends on the samples beside it", remedy)
    if alone.tokens is None or together.tokens is None:
        return
    one, row = alone.tokens[0], together.tokens[place]
    if together.mask is None and len(one) != len(row):
        subject.fail(
            f"a sample has {len(one)} tokens alone and {len(row)} beside a longer one, with no mask over the padding",
            "Return the mask that `ldmkit.conditioning.pad_stack` gives",
        )
    one = one if alone.mask is None else one[alone.mask[0]]
    row = row if together.mask is None else row[together.mask[place]]
    if not close(row, one):
        subject.fail(
            "tokens of a sample depend on the samples beside it", f"{remedy}, and padding is masked inside too"
        )


def check_gradients(subject: Subject) -> None:
    """Gradients reach every trainable parameter; none is unused."""
    conditioner = duplicate(subject.conditioner)
    parameters = {name: p for name, p in conditioner.named_parameters() if p.requires_grad}
    if not parameters:
        return
    canvas = subject.canvas(subject.sizes[0])
    rows = unlike_rows(subject.rows)
    with torch.enable_grad():
        by_encode = _reached(subject.encode(rows, canvas, conditioner), parameters)
        by_null = _reached(subject.null(canvas, conditioner), parameters)
    for name, parameter in parameters.items():
        if name in by_encode and name in by_null:
            continue
        moved = _moved(subject, conditioner, parameter, rows, canvas)
        for who, reached in (("encode", by_encode), ("null", by_null)):
            if name not in reached and who in moved:
                subject.fail(
                    f"the gradient of {name} is cut: it changes what {who} returns, but no gradient comes back",
                    "Look for .detach(), .data, .item() or torch.no_grad(); what shall not be trained belongs in `frozen`",
                )
        if name not in by_encode | by_null:
            subject.fail(
                f"{name} is never used: no gradient reaches it, and it changes nothing",
                "Remove it, or name its submodule in `frozen`",
            )


def _reached(answer: Conditioning, parameters: dict[str, nn.Parameter]) -> set[str]:
    """The parameters a gradient comes back to."""
    outputs = [value for value in ports(answer).values() if value.requires_grad]
    if not outputs:
        return set()
    loss = torch.stack([value.float().square().sum() for value in outputs]).sum()
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def _moved(
    subject: Subject, conditioner: Conditioner, parameter: nn.Parameter, rows: list[Tensors], canvas: Canvas
) -> set[str]:
    """Which of `encode` and `null` return something else when the parameter changes."""
    before = (subject.encode(rows, canvas, conditioner), subject.null(canvas, conditioner))
    kept = parameter.detach().clone()
    parameter.add_(torch.linspace(0.5, 1.0, parameter.numel()).reshape(parameter.shape))
    after = (subject.encode(rows, canvas, conditioner), subject.null(canvas, conditioner))
    parameter.copy_(kept)
    return {who for who, one, two in zip(("encode", "null"), before, after, strict=True) if equal_answers(one, two)}


def check_people(subject: Subject) -> None:
    """`preview`, `output_size` and `fidelity`, where there are any."""
    for row in subject.rows:
        preview = _asked(subject, "preview", row)
        if not (preview is None or isinstance(preview, str | Image.Image)):
            subject.fail(f"preview returned {type(preview).__name__}", "Return a PIL image, text, or None")
        size = _asked(subject, "output_size", row)
        if size is not None and not (
            isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
        ):
            subject.fail(f"output_size returned {size!r}", "Return (height, width) in pixels as whole numbers, or None")
    images = _images(subject)
    score = _asked(subject, "fidelity", images, subject.collate(subject.rows))
    if score is None:
        return
    if not isinstance(score, Tensor) or score.shape != images.shape[:1] or not bool(score.isfinite().all()):
        given = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
        subject.fail(
            f"fidelity returned {given} for {len(images)} images", "Return one finite number an image, (b,), or None"
        )


def _asked(subject: Subject, name: str, *arguments: Any) -> Any:
    try:
        return getattr(subject.conditioner, name)(*arguments)
    except Exception as error:
        subject.fail(f"{name} raised {said(error)}", "Return None where it has nothing to say")


def _images(subject: Subject) -> Tensor:
    """As many pictures as there are samples: the samples' own shape where they have one."""
    given = subject.sample.get("image")
    shape = tuple(given.shape) if isinstance(given, Tensor) else (3, *subject.sizes[0])
    generator = torch.Generator().manual_seed(0)
    return torch.rand((len(subject.rows), *shape), generator=generator) * 2 - 1
