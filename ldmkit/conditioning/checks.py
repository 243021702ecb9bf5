"""What a conditioner returns, checked: a fault is named with slot and plugin, what was returned, and what was expected."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Generator, Tensor
from torch.nn.parameter import is_lazy

from ldmkit.conditioning.conditioner import Conditioner
from ldmkit.conditioning.contract import dtype_name, fault_of, is_finite, number_fault, shown
from ldmkit.conditioning.types import Canvas, Conditioning, Tensors
from ldmkit.errors import DivergedError, LdmkitError, PluginError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

# What goes to another process as an array of numpy, which has no bfloat16.
SENT = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128}
)

HINT = "ldmkit.testing.check_conditioner examines it whole"


@dataclass(frozen=True)
class Examiner:
    """Asks one slot's conditioner.

    Shapes, dtypes and devices are checked in every output. Numbers that are not finite, and what else the conditioner did to
    its batch or to the process, are looked at where `closely` is asked for: the first look waits for the device, the second
    copies the batch.
    """

    slot: str
    conditioner: Conditioner
    origin: str = ""  # the plugin: "ldmkit-depth 1.2"

    @property
    def who(self) -> str:
        """The conditioner in words."""
        return f"the conditioner of slot {self.slot} ({described(self.conditioner, self.origin)})"

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """What `prepare` makes of one sample, if it is a dict of CPU tensors that a data worker can send.

        Raises:
            PluginError: the conditioner raised, or returned something else.
        """
        prepared = called(self.who, "prepare", lambda: self.conditioner.prepare(sample, generator))
        check_tensors(self.who, "prepared", prepared)
        for name, value in prepared.items():
            if value.device.type != "cpu" or value.requires_grad or value.dtype not in SENT:
                gradient = " with a gradient" if value.requires_grad else ""
                raise PluginError(
                    f"{self.who} prepared {name} in {dtype_name(value.dtype)} on {value.device}{gradient}",
                    hint="`prepare` runs in a data worker: plain CPU tensors; networks belong in `encode`, which converts to "
                    "canvas.dtype",
                )
        return prepared

    def ask(self, prepared: Tensors | None, canvas: Canvas, rows: int, *, closely: bool = False) -> Conditioning:
        """The output for `rows` rows (None: the null's one row).

        Raises:
            PluginError: the conditioner raised, or breaks its contract.
        """
        before = _Before(prepared) if closely else None
        given = None if prepared is None else dict(prepared)
        answer: Conditioning = called(
            self.who, "null" if prepared is None else "encode", lambda: self.conditioner(given, canvas)
        )
        self.check(answer, canvas, rows, null=prepared is None)
        if before is not None:
            self._check_effects(before, prepared)
            self._check_numbers(answer, prepared)
        return answer

    def preview(self, prepared: Tensors) -> Image | str | None:
        """What a person sees of one sample's condition. Raises `PluginError`."""
        from PIL.Image import Image

        found: Any = called(self.who, "preview", lambda: self.conditioner.preview(prepared))
        if found is not None and not isinstance(found, Image | str):
            raise self._unlike("preview", found, "a PIL image, text or None")
        return found

    def output_size(self, prepared: Tensors) -> tuple[int, int] | None:
        """The image size (h, w) that one sample's condition implies. Raises `PluginError`."""
        found: Any = called(self.who, "output_size", lambda: self.conditioner.output_size(prepared))
        if found is None:
            return None
        if not isinstance(found, tuple) or len(found) != 2 or not all(isinstance(side, int) for side in found):
            raise self._unlike("output_size", found, "(height, width) or None")
        return found

    def fidelity(self, images: Tensor, prepared: Tensors) -> Tensor | None:
        """How well images (b, c, h, w) obey the conditions: (b,), higher is better. Raises `PluginError`."""
        with torch.no_grad():
            found: Any = called(self.who, "fidelity", lambda: self.conditioner.fidelity(images, prepared))
        if found is not None and (not isinstance(found, Tensor) or found.shape != images.shape[:1]):
            raise self._unlike("fidelity", found, f"a tensor of shape ({len(images)},), one value per image, or None")
        return found

    def finish(self, images: Tensor, prepared: Tensors) -> Tensor:
        """What `sample` returns of decoded images (b, c, h, w). Raises `PluginError`."""
        with torch.no_grad():
            found: Any = called(self.who, "finish", lambda: self.conditioner.finish(images, prepared))
        if not isinstance(found, Tensor) or found.shape != images.shape or found.dtype != images.dtype:
            raise self._unlike("finish", found, f"images of shape {tuple(images.shape)} in {dtype_name(images.dtype)}")
        return found

    def _unlike(self, method: str, got: Any, expected: str) -> PluginError:
        shape = f" of shape {tuple(got.shape)}" if isinstance(got, Tensor) else ""
        return PluginError(f"{self.who} gave {type(got).__name__}{shape} as {method}; expected {expected}")

    def check(self, answer: Any, canvas: Canvas, rows: int, *, null: bool = False) -> None:
        """Raises `PluginError` where the ports, shapes, types or device of what a conditioner returned are wrong."""
        if not isinstance(answer, Conditioning):
            raise PluginError(
                f"{self.who} gave {type(answer).__name__}; expected Conditioning(tokens=..., vector=..., concat=...)",
                hint=HINT,
            )
        if fault := fault_of(answer, self.conditioner.emits, canvas, rows, null=null):
            raise PluginError(f"{self.who} gave {fault.text}", hint=f"{fault.remedy}; {HINT}")

    def _check_numbers(self, answer: Conditioning, prepared: Tensors | None) -> None:
        fault = number_fault(answer)
        if fault is None:
            return
        where = "null" if prepared is None else "encode"
        bad = [name for name, value in self.conditioner.named_parameters() if not is_finite(value)]
        if bad and torch.is_grad_enabled():
            return  # the training has gone astray, and says so itself
        if bad:
            raise DivergedError(
                f"{self.who} gave {fault.text}: its own weights are not finite ({bad[0]})",
                hint="load another checkpoint (`checkpoint=`), or weights='raw'",
            )
        already = [name for name, given in (prepared or {}).items() if not is_finite(given)]
        found = f"; {', '.join(already)} had them already, as `prepare` made it" if already else ""
        raise PluginError(f"{self.who} gave {fault.text} from {where}{found}", hint=fault.remedy)

    def _check_effects(self, before: _Before, prepared: Tensors | None) -> None:
        for name, value in before.tensors.items():
            if prepared is not None and not _same(value, prepared[name]):
                raise PluginError(
                    f"{self.who} changed the batch's {name}",
                    hint="it is used again: work on a copy (no `x *= ...`)",
                )
        for name, value in process().items():
            if value != before.process[name]:
                raise PluginError(
                    f"{self.who} changed {name} from {before.process[name]} to {value}",
                    hint="restore what it changes in the process",
                )


class _Before:
    """The batch and the process before a call."""

    def __init__(self, prepared: Tensors | None) -> None:
        self.tensors = {name: value.clone() for name, value in (prepared or {}).items()}
        self.process = process()


def called(who: str, method: str, call: Callable[[], T]) -> T:
    """What a plugin's method returns; an exception becomes a `PluginError` that names it.

    Memory that runs out, and what says already what a person can do about it, is passed on.
    """
    try:
        return call()
    except LdmkitError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            raise
        lines = str(error).strip().splitlines()
        raise PluginError(
            f"{who} raised {type(error).__name__} in {method}: {lines[0] if lines else 'no message'}",
            hint="--debug shows where; ldmkit.testing.check_conditioner examines a conditioner",
        ) from error


def check_tensors(who: str, did: str, value: Any) -> None:
    """Raises `PluginError` where what a conditioner prepared or collated is no dict of tensors."""
    if not isinstance(value, dict) or not value or not all(isinstance(inner, Tensor) for inner in value.values()):
        raise PluginError(
            f"{who} {did} {_kinds(value)}; expected a dict of tensors",
            hint='return {"depth": depth} from `prepare` and `from_user`, and the same names, rows first, from `collate`',
        )


def check_shapes(who: str, rows: Sequence[Mapping[str, Tensor]]) -> None:
    """Raises `PluginError` where prepared rows cannot be stacked: one has other names, or a tensor of another shape."""
    first = {name: tuple(value.shape) for name, value in rows[0].items()}
    for position, row in enumerate(rows):
        own = {name: tuple(value.shape) for name, value in row.items()}
        if own != first:
            unlike = next(name for name in (*first, *own) if own.get(name) != first.get(name))
            raise PluginError(
                f"{who} prepared {unlike} with the shape {shown(first.get(unlike))} for the first sample of a batch and "
                f"{shown(own.get(unlike))} for number {position + 1}: they cannot be stacked",
                hint="give all samples one shape in `prepare`, or pad them in `collate`: ldmkit.pad_stack",
            )


def check_state(who: str, conditioner: Conditioner) -> None:
    """Raises `PluginError` where a conditioner's state is more than tensors of known shapes: no checkpoint can hold it."""
    uninitialised = [name for name, value in conditioner.named_parameters() if is_lazy(value)]
    uninitialised += [name for name, value in conditioner.named_buffers() if is_lazy(value)]
    if uninitialised:
        raise PluginError(
            f"{who} has the parameter {uninitialised[0]} without a shape: it is made by the first call (a Lazy module)",
            hint="every shape follows from the constructor's options: write the width out, for example nn.Linear(3, 8)",
        )
    for name, value in conditioner.state_dict().items():
        if not isinstance(value, Tensor):
            raise PluginError(
                f"{who} has a state that is no tensor: {name} ({type(value).__name__}), from `get_extra_state`",
                hint="a checkpoint holds tensors: register it as a buffer, or make it an option of the constructor",
            )


def described(conditioner: Conditioner, origin: str = "") -> str:
    """`Depth, ldmkit-depth 1.2`."""
    return ", ".join(filter(None, (type(conditioner).__name__, origin)))


def process() -> Mapping[str, Any]:
    """What a conditioner may not change outside itself."""
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "gradient mode": torch.is_grad_enabled(),
        "the number of threads": torch.get_num_threads(),
        "the working directory": _here(),
        "the seed of torch": torch.initial_seed(),
    }


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # removed under us
        return ""


def _same(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return first.is_meta or torch.equal(torch.nan_to_num(first), torch.nan_to_num(second))


def _kinds(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {type(inner).__name__}" for name, inner in value.items()) + "}"
    return type(value).__name__
