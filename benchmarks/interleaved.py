"""Timing in turns: every way in one process, A B C A B C, and the ratios of each round.

Wall clock and separate processes mislead on a machine that does other things too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """CPU time of one call; on a GPU the time until it is done."""
    if device.type == "cpu":
        begun = time.process_time()
        call()
        return time.process_time() - begun
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def ratios(calls: Mapping[str, Callable[[], object]], base: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """Of each way its median seconds, and the median over the rounds of how many times as fast as `base` it was.

    One round before them is not counted: it allocates, and prepares kernels.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return {
        name: {
            "seconds": statistics.median(own),
            "ratio": statistics.median(slow / fast for slow, fast in zip(times[base], own, strict=True)),
        }
        for name, own in times.items()
    }


def error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to that of what is expected."""
    expected = expected.double().cpu()
    return float((found.double().cpu() - expected).norm() / expected.norm())


def agree(name: str, found: Tensor, expected: Tensor, most: float) -> float:
    """`error`, or the end of the program where it is above `most`: what computes something else is not timed."""
    distance = error(found, expected)
    if not distance <= most:
        raise SystemExit(f"{name}: differs by {distance:.1e} of what it is compared with; nothing was timed")
    return distance
