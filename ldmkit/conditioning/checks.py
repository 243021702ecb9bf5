"""What a conditioner answers, examined: a wrong answer is named with its slot and plugin, what came, and what was promised."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Generator, Tensor

from ldmkit.conditioning.conditioner import Conditioner
from ldmkit.conditioning.types import Canvas, Conditioning, Ports, Tensors
from ldmkit.errors import LdmkitError, PluginError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

# What goes to another process as an array of numpy, which has no bfloat16.
SENT = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128}
)

HINT = "mend `encode`, `null` or `emits`; ldmkit.testing.check_conditioner finds which"


@dataclass(frozen=True)
class Examiner:
    """Asks one slot's conditioner.

    Shapes, types and places are looked at in every answer. Numbers that are not finite, and what else the conditioner did to
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
                    f"{self.who} prepared {name} in {_name(value.dtype)} on {value.device}{gradient}",
                    hint="`prepare` runs in a data worker: plain CPU tensors; networks belong in `encode`, which converts to "
                    "canvas.dtype",
                )
        return prepared

    def ask(self, prepared: Tensors | None, canvas: Canvas, rows: int, *, closely: bool = False) -> Conditioning:
        """The answer for `rows` rows (None: the null's one row).

        Raises:
            PluginError: the conditioner raised, or breaks its contract.
        """
        before = _Before(prepared) if closely else None
        given = None if prepared is None else dict(prepared)
        answer: Conditioning = called(
            self.who, "null" if prepared is None else "encode", lambda: self.conditioner(given, canvas)
        )
        self.check(answer, canvas, rows)
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
            raise self._unlike("fidelity", found, f"a tensor of shape ({len(images)},), one value an image, or None")
        return found

    def _unlike(self, method: str, got: Any, expected: str) -> PluginError:
        shape = f" of shape {tuple(got.shape)}" if isinstance(got, Tensor) else ""
        return PluginError(f"{self.who} gave {type(got).__name__}{shape} as {method}; expected {expected}")

    def check(self, answer: Any, canvas: Canvas, rows: int) -> None:
        """Ports, shapes, types and device of an answer."""
        if not isinstance(answer, Conditioning):
            raise PluginError(
                f"{self.who} gave {type(answer).__name__}; expected Conditioning(tokens=..., vector=..., concat=...)",
                hint=HINT,
            )
        for port, shape in promised(self.conditioner.emits, canvas, rows).items():
            value = getattr(answer, port)
            got = tuple(value.shape) if isinstance(value, Tensor) else None if value is None else type(value).__name__
            if not _fits(got, shape):
                raise PluginError(
                    f"{self.who} gave {port} of shape {got}; expected {_shape(shape)} from emits = {self.conditioner.emits} "
                    f"on a canvas with grid {canvas.grid}",
                    hint=HINT,
                )
            if value is not None:
                self._check_place(port, value, canvas)
        if answer.mask is not None:
            self._check_mask(answer, canvas)

    def _check_place(self, port: str, value: Tensor, canvas: Canvas) -> None:
        mixed = torch.is_autocast_enabled(canvas.device.type) and value.is_floating_point()
        if value.dtype != canvas.dtype and not mixed:
            raise PluginError(
                f"{self.who} gave {port} in {_name(value.dtype)}; the canvas is {_name(canvas.dtype)}",
                hint="convert with .to(canvas.dtype); name no dtype",
            )
        if value.device.type != canvas.device.type:
            raise PluginError(
                f"{self.who} gave {port} on {value.device}; the canvas is on {canvas.device}",
                hint="make new tensors with `canvas.zeros` or device=canvas.device",
            )

    def _check_mask(self, answer: Conditioning, canvas: Canvas) -> None:
        mask, tokens = answer.mask, answer.tokens
        if (
            not isinstance(mask, Tensor)
            or tokens is None
            or mask.shape != tokens.shape[:2]
            or mask.dtype != torch.bool
            or mask.device.type != canvas.device.type
        ):
            got = f"{tuple(mask.shape)} {_name(mask.dtype)}" if isinstance(mask, Tensor) else type(mask).__name__
            beside = "no tokens" if tokens is None else f"tokens {tuple(tokens.shape)}"
            raise PluginError(
                f"{self.who} gave a mask {got} beside {beside}; expected (batch, length) bool on {canvas.device}",
                hint=HINT,
            )

    def _check_numbers(self, answer: Conditioning, prepared: Tensors | None) -> None:
        for port in ("tokens", "vector", "concat"):
            value = getattr(answer, port)
            if value is None or value.is_meta or _finite(value):
                continue
            if not all(_finite(parameter) for parameter in self.conditioner.parameters()):
                return  # the training has gone astray, and says so itself
            already = [name for name, given in (prepared or {}).items() if not _finite(given)]
            raise PluginError(
                f"{self.who} gave {port} with NaN or infinite values from {'null' if prepared is None else 'encode'}"
                + (f"; {', '.join(already)} had them already, as `prepare` made it" if already else ""),
                hint="look for a division by 0 or a log of 0, and for such values in the data",
            )
        if answer.mask is not None and not answer.mask.is_meta and not bool(answer.mask.any(1).all()):
            raise PluginError(
                f"{self.who} gave a mask with a row that attends to nothing (all False)",
                hint="True means attend, and every row keeps at least one True",
            )

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
                    hint="leave the process as it was",
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
                f"{who} prepared {unlike} with the shape {_shape(first.get(unlike))} for the first sample of a batch and "
                f"{_shape(own.get(unlike))} for number {position + 1}: they cannot be stacked",
                hint="give all samples one shape in `prepare`, or pad them in `collate`: ldmkit.pad_stack",
            )


def described(conditioner: Conditioner, origin: str = "") -> str:
    """`Depth, ldmkit-depth 1.2`."""
    return ", ".join(filter(None, (type(conditioner).__name__, origin)))


def promised(emits: Ports, canvas: Canvas, rows: int) -> dict[str, tuple[int | None, ...] | None]:
    """Port -> the shape `emits` promises (None: any length), or None for a port that is not fed."""
    return {
        "tokens": (rows, None, emits.tokens) if emits.tokens else None,
        "vector": (rows, emits.vector) if emits.vector else None,
        "concat": (rows, emits.concat, *canvas.grid) if emits.concat else None,
    }


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


def _finite(value: Tensor) -> bool:
    return value.is_meta or not value.is_floating_point() or bool(value.isfinite().all())


def _same(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return first.is_meta or torch.equal(torch.nan_to_num(first), torch.nan_to_num(second))


def _fits(got: Any, expected: tuple[int | None, ...] | None) -> bool:
    if got is None or expected is None:
        return got is None and expected is None
    if not isinstance(got, tuple) or len(got) != len(expected):
        return False
    return all(e is None or e == g for g, e in zip(got, expected, strict=True))


def _kinds(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {type(inner).__name__}" for name, inner in value.items()) + "}"
    return type(value).__name__


def _shape(expected: tuple[int | None, ...] | None) -> str:
    if expected is None:
        return "none"
    return "(" + ", ".join("length" if side is None else str(side) for side in expected) + ")"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
