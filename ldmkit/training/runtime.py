"""Where and in which precision a stage is computed. It changes no random draw: results differ by rounding only."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from ldmkit.errors import ResourceError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """A device, the type of autocast (float32 = none), and how data is loaded."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    compile: bool = False
    workers: int = 0

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss in fp16, does nothing else."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)


def resolve(
    *,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    workers: int = 0,
    threads: int | None = None,
) -> Runtime:
    """A `Runtime` of what a recipe's `runtime` section asks for.

    `auto` takes cuda, mps or cpu, whichever is there first; bf16 on a CUDA device that has it (fp16 on an older one), and fp32
    elsewhere: at the size of network that is trained on a CPU, fp32 is the fastest. `threads` is torch's own number, if given.

    Raises:
        ResourceError: what was asked for by name is not there.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    there = [name for name, found in _devices().items() if found]
    chosen = there[0] if device == "auto" else device
    if chosen.partition(":")[0] not in there:
        raise ResourceError(
            f"runtime.device is {device}, and this machine has {', '.join(there)}", hint="leave it at `device: auto`"
        )
    where = torch.device(chosen)
    dtype = _automatic(where) if precision == "auto" else PRECISIONS[precision]
    if dtype == torch.float16 and where.type == "cpu":
        raise ResourceError(
            "runtime.precision is fp16, which no CPU trains in", hint="take fp32 or bf16, or leave it at `auto`"
        )
    if dtype == torch.bfloat16 and where.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ResourceError("runtime.precision is bf16, which this GPU has not", hint="take fp16 or fp32")
    return Runtime(where, dtype, compile, workers)


def _devices() -> dict[str, bool]:
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


def _automatic(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def describe(runtime: Runtime) -> str:
    """``cpu, 2 threads, fp32``."""
    if runtime.device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads, {runtime.precision}"
    name = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else runtime.device.type
    return f"{name}, {runtime.precision}"
