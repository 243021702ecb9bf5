"""How many threads a stage computes with: measured on its own steps, and kept in the run, so that it goes on with the same bits.

Small networks gain little by a second thread, and lose much where another program has its core. No rule knows; a few steps do.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import torch
from torch import nn

from ldmkit.training.checkpointing.atomic_dir import write_json
from ldmkit.training.logging.log import Log
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.runtime import Runtime

FILE = "threads.json"
ROUNDS = 5  # after one that is not counted: the first pass of a number prepares its kernels
HOPELESS = 3.0  # times the time of the best: no further round for such a number
TIE = 0.03  # the fewest threads whose time is this near the best's: what they leave free, others can use
BUDGET = 20.0  # seconds after which the rounds end
WINDOW = 50  # steps whose mean is the speed
SLOW = 2.0  # times the usual time of a step, at which the numbers are measured again

Row = dict[str, int | str]  # stage, the step after which it holds, threads
Seconds = dict[int, float]  # number of threads -> seconds of a step


class Threads:
    """The numbers of threads of a run's stages, in its ``threads.json``; as a context manager it puts back the number it found.

    Args:
        folder: the run's directory; None records nothing.
        automatic: whether to measure; False leaves torch's number as it is.
    """

    def __init__(self, folder: Path | None = None, *, automatic: bool = False) -> None:
        self.most = torch.get_num_threads()
        self.automatic = automatic and self.most > 1
        self._path = None if folder is None else folder / FILE
        self._rows: list[Row] = _read(self._path)

    @classmethod
    def of(cls, folder: Path, asked: int | Literal["auto"] | None, runtime: Runtime, ranks: Ranks) -> Threads:
        """What `runtime.threads` asks for: ``auto`` measures on a CPU, unless the user's own OMP_NUM_THREADS says the number.

        Several processes share the cores by their launcher's number, and a compiled network has its number built in.
        """
        alone = runtime.device.type == "cpu" and ranks.count == 1 and not runtime.compile
        return cls(folder, automatic=asked == "auto" and alone and "OMP_NUM_THREADS" not in os.environ)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.automatic:
            torch.set_num_threads(self.most)

    def recorded(self, stage: str, step: int) -> int | None:
        """What a stage computed with after `step`, if that is known."""
        numbers = [int(row["threads"]) for row in self._rows if row["stage"] == stage and int(row["step"]) <= step]
        return numbers[-1] if numbers else None

    def resume(self, stage: str, step: int) -> bool:
        """Sets the number that a stage computed with after `step`; False where none is known.

        What a process recorded of later steps, which are lost, is forgotten.
        """
        number = self.recorded(stage, step)
        if not self.automatic or number is None:
            return False
        if self._after(stage, step) != self._rows:
            self._write(self._after(stage, step))
        torch.set_num_threads(number)
        return True

    def record(self, stage: str, step: int, number: int) -> None:
        """Keeps the number that is used from `step` on. Raises OSError where it cannot be written."""
        self._write([*self._after(stage, step - 1), {"stage": stage, "step": step, "threads": number}])

    def _after(self, stage: str, step: int) -> list[Row]:
        """The rows without those that tell of the stage's steps after `step`."""
        return [row for row in self._rows if row["stage"] != stage or int(row["step"]) <= step]

    def _write(self, rows: list[Row]) -> None:
        self._rows = rows
        if self._path is not None:
            write_json(self._path, rows)

    def pace(self, stage: str, step: int, log: Log, trial: Callable[[], None]) -> Pace:
        """Of a stage that goes on after `step`; `trial` computes what a step does and changes nothing (see `undone`)."""
        return Pace(self, stage, step, log, trial)


class Pace:
    """The speed of one stage: measured before its first step, and again at a checkpoint after it has fallen to half."""

    def __init__(self, threads: Threads, stage: str, step: int, log: Log, trial: Callable[[], None]) -> None:
        self._threads, self._stage, self._log, self._trial = threads, stage, log, trial
        self._usual: float | None = None
        self._times: deque[float] = deque(maxlen=WINDOW)
        self._known = not threads.automatic or threads.resume(stage, step)

    @contextmanager
    def step(self, done: int) -> Iterator[None]:
        """Around the step after `done` others."""
        if not self._known:
            self._known = True
            self._choose(done)
        begun = time.perf_counter()
        yield
        self._times.append(time.perf_counter() - begun)
        if self._usual is None and len(self._times) == WINDOW:
            self._usual = statistics.fmean(self._times)
            self._times.clear()

    @property
    def slow(self) -> bool:
        """Whether steps have taken twice as long for a while as they did after the last measurement."""
        full = self._usual is not None and len(self._times) == WINDOW
        return full and statistics.fmean(self._times) > SLOW * (self._usual or 0.0)

    def saved(self, done: int) -> None:
        """Called when step `done` is in a checkpoint, from which a run goes on with the number that is chosen here."""
        if not self._threads.automatic or not self.slow:
            return
        self._log.console.note(f"threads: {self._stage} is at less than half its speed; measuring again")
        self._choose(done)
        self._usual = None
        self._times.clear()

    def _choose(self, done: int) -> None:
        seconds = measure(self._trial, self._threads.most)
        number = chosen(seconds)
        torch.set_num_threads(number)
        try:
            self._threads.record(self._stage, done, number)
        except OSError as error:
            self._log.trouble(FILE, error)
        told = ", ".join(f"{1000 * took:.0f} ms a step with {count}" for count, took in seconds.items())
        self._log.console.note(f"threads: {number} for the {self._stage} ({told})")
        self._log.append(self._stage, done, {"threads": number})


def measure(trial: Callable[[], None], most: int) -> Seconds:
    """Seconds of `trial` with `most` threads, half as many, and so on down to one, each measured in turn several times.

    A number that is hopeless is left after its first round, and the numbers below it too where they are slower still.
    """
    left: list[int] = []
    count, best, begun = most, float("inf"), time.perf_counter()
    while count >= 1:
        took = _timed(trial, count)
        if took > HOPELESS * best:
            break
        best = min(best, took)
        left.append(count)
        count //= 2
    times: dict[int, list[float]] = {count: [] for count in left}
    for _ in range(ROUNDS):
        for count in left:
            times[count].append(_timed(trial, count))
        best = min(times[count][-1] for count in left)
        left = [count for count in left if times[count][-1] <= HOPELESS * best]
        if time.perf_counter() - begun > BUDGET:
            break
    # The slowest may be a hiccup; if it is more than that, another round shows it too.
    return {count: statistics.fmean(sorted(own)[: max(len(own) - 1, 1)]) for count, own in times.items()}


def chosen(seconds: Seconds) -> int:
    """The fewest threads that are as fast as the fastest."""
    best = min(seconds.values())
    return min(count for count, took in seconds.items() if took <= (1 + TIE) * best)


@contextmanager
def undone(modules: Iterable[nn.Module]) -> Iterator[None]:
    """What is computed inside leaves no trace: weights (codes are averaged in a forward pass), buffers, gradients, draws."""
    owners = [owner for module in modules for owner in module.modules()]
    tensors = [
        (own, name, value) for own in owners for name, value in [*own._buffers.items(), *own._parameters.items()]
    ]
    copies = [(own, name, value, value.detach().clone()) for own, name, value in tensors if value is not None]
    with torch.random.fork_rng(devices=[]):
        yield
    with torch.no_grad():
        for own, name, value, copy in copies:
            value.copy_(copy)
            value.grad = None
            if name in own._buffers:  # a module may have put another tensor there
                own._buffers[name] = value


def _timed(trial: Callable[[], None], count: int) -> float:
    torch.set_num_threads(count)
    begun = time.perf_counter()
    trial()
    return time.perf_counter() - begun


def _read(path: Path | None) -> list[Row]:
    """What a run recorded; nothing where that cannot be read."""
    with suppress(OSError, ValueError):
        found = json.loads("[]" if path is None else path.read_text("utf-8"))
        if isinstance(found, list) and all(
            isinstance(row, dict) and {"stage", "step", "threads"} <= set(row) for row in found
        ):
            return found
    return []
