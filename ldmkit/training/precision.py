"""In which precision a stage computes on a CPU: measured on its own steps, and kept in the run, which goes on with the same bits.

Whether 16 bits are worth it depends on the CPU's instructions and on the network's size: a small one spends its time between the
products, where bf16 only adds conversions. No table knows; a few steps do.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from ldmkit.training.checkpointing.atomic_dir import write_json
from ldmkit.training.logging.log import Log
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.runtime import PRECISIONS, Runtime

FILE = "precision.json"
ROUNDS = 3  # after one that is not counted
GAIN = 1.15  # how many times as fast bf16 must be: less is noise, and not worth its rounding
SMALL = 0.1  # seconds of CPU time of a step in float32, below which nothing is tried

Trial = Callable[[Runtime], None]  # computes what a step does in that precision, and changes nothing


class Precisions:
    """The precisions of a run's stages, in its ``precision.json``.

    Args:
        folder: the run's directory; None records nothing.
        automatic: whether to measure; False leaves the runtime as it is.
    """

    def __init__(self, folder: Path | None = None, *, automatic: bool = False) -> None:
        self.automatic = automatic
        self._path = None if folder is None else folder / FILE
        self._chosen: dict[str, str] = _read(self._path)

    @classmethod
    def of(cls, folder: Path, asked: str, runtime: Runtime, ranks: Ranks) -> Precisions:
        """What `runtime.precision` asks for: ``auto`` measures on a CPU.

        On a GPU bf16 needs no measuring. Several processes would have to agree, and a compiled network has its type built in.
        """
        alone = runtime.device.type == "cpu" and ranks.count == 1 and not runtime.compile
        return cls(folder, automatic=asked == "auto" and alone)

    def runtime(self, runtime: Runtime, stage: str, step: int, log: Log, trial: Trial) -> Runtime:
        """`runtime` in the precision in which `stage` goes on after `step`; measured before the first step only."""
        if not self.automatic:
            return runtime
        if step == 0:
            self._measure(runtime, stage, log, trial)
        name = self._chosen.get(stage, runtime.precision)  # a run from before this was measured goes on as it was
        return replace(runtime, dtype=PRECISIONS[name])

    def _measure(self, runtime: Runtime, stage: str, log: Log, trial: Trial) -> None:
        ratio, seconds = compare(runtime, trial)
        name = "bf16" if ratio >= GAIN else runtime.precision
        self._chosen = {**self._chosen, stage: name}
        if ratio:
            log.console.note(
                f"precision: {name} for the {stage} ({1000 * seconds:.0f} ms a step in fp32 on one thread, bf16 is {ratio:.2f} "
                "times as fast; `runtime.precision: fp32` is the reference)"
            )
        try:
            if self._path is not None:
                write_json(self._path, self._chosen)
        except OSError as error:
            log.trouble(FILE, error)


def compare(runtime: Runtime, trial: Trial) -> tuple[float, float]:
    """How many times as fast a step is in bf16, 0 where that was not worth trying, and its seconds in float32.

    CPU time on one thread, in turns: what else the machine does is no part of it.
    """
    half, threads = replace(runtime, dtype=torch.bfloat16), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trial(runtime)
        seconds = _timed(trial, runtime)
        if seconds < SMALL:
            return 0.0, seconds
        trial(half)
        pairs = [(_timed(trial, runtime), _timed(trial, half)) for _ in range(ROUNDS)]
    finally:
        torch.set_num_threads(threads)
    return statistics.median(full / low for full, low in pairs), statistics.median(full for full, _ in pairs)


def _timed(trial: Trial, runtime: Runtime) -> float:
    begun = time.process_time()
    trial(runtime)
    return time.process_time() - begun


def _read(path: Path | None) -> dict[str, str]:
    """What a run recorded; nothing where that cannot be read."""
    with suppress(OSError, ValueError):
        found = json.loads("{}" if path is None else path.read_text("utf-8"))
        if isinstance(found, dict):
            return {stage: name for stage, name in found.items() if name in PRECISIONS}
    return {}
