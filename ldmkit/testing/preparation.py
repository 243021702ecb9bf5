"""One sample: `prepare`, its randomness, the copy a data worker gets, and `from_user`."""

from __future__ import annotations

import pickle
from typing import Any

from torch import Tensor

from ldmkit.conditioning import Tensors
from ldmkit.testing.subject import Subject, clone, prepare, said, same


def check_missing_field(subject: Subject) -> None:
    """A sample without a field is refused by name."""
    for name in subject.conditioner.reads:
        try:
            subject.conditioner.prepare({key: value for key, value in subject.sample.items() if key != name})
        except Exception as error:
            if name not in str(error):
                subject.fail(
                    f"prepare raised {said(error)} on a sample without {name!r}, which does not name the field",
                    f'Read it as sample["{name}"], or raise an error that names it',
                )
        else:
            subject.fail(
                f"prepare took a sample without {name!r}, which is in `reads`",
                "An absent condition is the core's business (the null); a field that is not there is an error",
            )


def check_prepare(subject: Subject) -> None:
    """`prepare` returns CPU tensors by name, and leaves the sample alone."""
    for sample in subject.samples:
        before = {name: clone({"": value})[""] for name, value in sample.items() if isinstance(value, Tensor)}
        try:
            prepared = prepare(subject.conditioner, sample)
        except Exception as error:
            subject.fail(f"prepare raised {said(error)} on a sample given to the check", "Give samples it can prepare")
        check_tensors(subject, prepared, "prepare")
        if changed := [name for name, value in before.items() if not same(value, sample[name])]:
            subject.fail(
                f"prepare changed the sample's {changed[0]}", "Samples are cached: work on a copy (no `x += ...`)"
            )
        subject.rows.append(prepared)
    keys = {frozenset(row) for row in subject.rows}
    if len(keys) > 1:
        subject.fail("prepare returned different names for different samples", "Rows of a batch hold the same tensors")


def check_tensors(subject: Subject, prepared: Any, who: str) -> None:
    """A mapping of names to CPU tensors without gradient."""
    if (
        not isinstance(prepared, dict)
        or not prepared
        or not all(isinstance(value, Tensor) for value in prepared.values())
    ):
        subject.fail(f"{who} returned {_described(prepared)}", 'Return a dict of tensors: {"depth": depth}')
    for name, value in prepared.items():
        if value.device.type != "cpu" or value.requires_grad:
            subject.fail(
                f"{who} returned {name} on {value.device}" + (" with a gradient" if value.requires_grad else ""),
                "It runs in a data worker: CPU tensors without gradients; networks belong in `encode`",
            )


def check_randomness(subject: Subject) -> None:
    """All chance comes from the generator; without one there is none."""
    remedy = (
        "Draw with `generator=generator`, never from torch's, numpy's or Python's global state, and not without one"
    )
    for seed, case in ((0, "under equal generators"), (None, "without a generator")):
        first = prepare(subject.conditioner, subject.sample, seed, elsewhere=1)
        second = prepare(subject.conditioner, subject.sample, seed, elsewhere=2)
        if different := _different(first, second):
            subject.fail(f"prepare is random {case}: {different} differs between two calls", remedy)


def check_worker_copy(subject: Subject) -> None:
    """The copy without weights pickles, and prepares the same."""
    remedy = (
        "A data worker has a copy without parameters, buffers and submodules: keep what `prepare` needs as plain values "
        "(numbers, text, lists), set in __init__"
    )
    twin = subject.conditioner.weightless()
    try:
        twin = pickle.loads(pickle.dumps(twin))
    except Exception as error:
        local = "<locals>" in type(twin).__qualname__
        subject.fail(
            f"the copy for a data worker cannot be pickled: {said(error)}",
            "Define the class at the top level of a module: a worker imports it"
            if local
            else "Attributes are plain values: no lambdas, open files or locks; make such things where they are used",
        )
    for sample, row in zip(subject.samples, subject.rows, strict=True):
        try:
            prepared = prepare(twin, sample)
        except Exception as error:
            subject.fail(f"prepare raised {said(error)} on the copy for a data worker, which has no weights", remedy)
        if different := _different(prepared, row):
            subject.fail(
                f"prepare gives another {different} on the copy for a data worker, which has no weights", remedy
            )


def check_user_value(subject: Subject) -> None:
    """What a person gives becomes what `prepare` returns."""
    if subject.value is None:
        return
    for size in subject.sizes:
        try:
            prepared = subject.conditioner.from_user(subject.value, size)
        except Exception as error:
            subject.fail(
                f"from_user raised {said(error)} on {_described(subject.value)}",
                "It takes ONE value as a person gives it, and returns what `prepare` does",
            )
        check_tensors(subject, prepared, "from_user")
        row = subject.rows[0]
        if set(prepared) != set(row):
            subject.fail(
                f"from_user returned {', '.join(sorted(prepared))} where prepare returns {', '.join(sorted(row))}",
                "Both feed `encode`: return the same names",
            )
        for name, value in prepared.items():
            if value.ndim != row[name].ndim or value.dtype != row[name].dtype:
                subject.fail(
                    f"from_user returned {name} as {_shape(value)} where prepare returns {_shape(row[name])}",
                    "Both are ONE sample, without a batch dimension",
                )
        subject.encode([prepared], subject.canvas(size))


def _different(first: Tensors, second: Tensors) -> str | None:
    if set(first) != set(second):
        return ", ".join(sorted(set(first) ^ set(second)))
    return next((name for name in first if not same(first[name], second[name])), None)


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {_described(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, Tensor):
        return f"a tensor {_shape(value)}"
    return f"{value!r:.60}" if isinstance(value, str | int | float) else type(value).__name__


def _shape(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype)[6:]}"


def unlike_rows(rows: list[Tensors]) -> list[Tensors]:
    """The rows, and where there is but one, a second made of it by rolling its tensors: values stay in their range."""
    if len(rows) > 1:
        return rows
    return [rows[0], {name: value.roll(1, -1) if value.ndim else value for name, value in rows[0].items()}]
