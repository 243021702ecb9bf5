"""Where and in which precision a stage is computed. It changes no random draw: results differ by rounding only."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from ldmkit.errors import ResourceError
from ldmkit.plugins.ranges import Count, Positive

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """A device, the type of autocast (float32 = none), how networks are laid out and compiled, and how data is loaded."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    compile: bool = False
    workers: int = 0
    channels_last: bool = False
    checkpointing: bool = False
    worker_timeout: int = 300

    def place(self, module: nn.Module) -> None:
        """Moves a module to the device, its convolutions in the memory format that was asked for."""
        module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)

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
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    tf32: bool = False,
    channels_last: bool = False,
    compile: bool = False,
    checkpointing: bool = False,
    deterministic: bool = False,
    workers: Count | Literal["auto"] = 0,
    worker_timeout: Positive = 300,
    threads: Positive | Literal["auto"] | None = "auto",
) -> Runtime:
    """A `Runtime` of what a recipe's `runtime` section asks for.

    Args:
        device: `auto` takes cuda, mps or cpu, whichever is there first.
        precision: `auto` is bf16 on a CUDA device that has it (fp16 on an older one); on a CPU the diffusion stage measures bf16
            against fp32 on its own steps, takes it where it is faster, and the run keeps the choice; all else is fp32.
        tf32: matrix products of a CUDA device in TensorFloat-32; without it fp32 is fp32 there too.
        channels_last: convolutions see their channels last in memory.
        compile: the denoiser is compiled.
        checkpointing: the denoiser's activations are computed again in the backward pass: less memory, about a third more time.
        deterministic: a CUDA device gives the same bits in every run, for some of its speed; a CPU does so anyway.
        workers: processes that read and prepare data; 0 is none, `auto` one for each core beside the first, at most 2.
        worker_timeout: seconds without a batch after which a data worker counts as hung.
        threads: of a CPU: `auto` measures on each stage's own steps how many are fastest, and the run keeps the number; a number
            is taken as it is, so that two runs have the same bits; null leaves what torch (OMP_NUM_THREADS) takes.

    Raises:
        ResourceError: what was asked for by name is not there.
    """
    if isinstance(threads, int):
        torch.set_num_threads(threads)
    where = _device(device)
    dtype = _automatic(where) if precision == "auto" else PRECISIONS[precision]
    if dtype == torch.float16 and where.type == "cpu":
        raise ResourceError(
            "runtime.precision is fp16, which no CPU trains in", hint="take fp32 or bf16, or leave it at `auto`"
        )
    if dtype == torch.bfloat16 and where.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ResourceError("runtime.precision is bf16, which this GPU has not", hint="take fp16 or fp32")
    if compile:
        _require_compiler(where)
    if where.type == "cuda":
        # One switch for each library: after torch's finer ones, asking by the old names is an error, and its own compiler asks.
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
    if deterministic:
        # Read when cuBLAS is first used. What has no such algorithm warns, and may differ in the last bit.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the switch imports sympy, for seconds
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
    count = min(2, _cores() - 1) if workers == "auto" else workers
    return Runtime(where, dtype, compile, count, channels_last, checkpointing, worker_timeout)


def _device(asked: str) -> torch.device:
    there = [name for name, found in _devices().items() if found]
    kind, _, number = (there[0] if asked == "auto" else asked).partition(":")
    if kind not in there:
        raise ResourceError(
            f"runtime.device is {asked}, and this machine has {', '.join(there)}", hint="leave it at `device: auto`"
        )
    count = _count(kind)
    if number and (not number.isdecimal() or int(number) >= count):
        names = [f"{kind}:{index}" for index in range(count)]
        raise ResourceError(f"runtime.device is {asked}; there are {', '.join(names)}", hint=f"or leave it at {kind}")
    return torch.device(f"{kind}:{number}" if number else kind)


def _devices() -> dict[str, bool]:
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


def _count(kind: str) -> int:
    return torch.cuda.device_count() if kind == "cuda" else 1


def _cores() -> int:
    """Those that this process may run on."""
    allowed = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def _require_compiler(where: torch.device) -> None:
    """torch.compile writes C++ for a CPU and Triton for a GPU, and finds out in the first step what is missing."""
    if where.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ResourceError(
            "runtime.compile needs triton on a GPU, and it is not installed",
            hint="pip install triton, or leave out `compile`",
        )
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    if where.type == "cpu" and shutil.which(os.environ.get("CXX", usual)) is None:
        raise ResourceError(
            f"runtime.compile needs a C++ compiler on a CPU, and there is no {os.environ.get('CXX', usual)}",
            hint=f"install {usual}, name another one in the variable CXX, or leave out `compile`",
        )


def _automatic(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def describe(runtime: Runtime) -> str:
    """``cpu, 2 threads, fp32``."""
    switches = [name for name in ("channels_last", "compile", "checkpointing") if getattr(runtime, name)]
    if runtime.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        switches.insert(0, "tf32")
    if runtime.device.type == "cpu":
        where = f"cpu, {torch.get_num_threads()} threads"
    else:
        where = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else runtime.device.type
    return ", ".join([where, runtime.precision, *(name.replace("_", "-") for name in switches)])
