"""Numbers on their way out: `metrics.jsonl`, TensorBoard, the console, observers."""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from ldmkit.training.console import Console, duration

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
Observer = Callable[[str, int, Mapping[str, float]], None]  # stage, step, values


class Log:
    """Where the stages write their numbers.

    Args:
        folder: holds ``metrics.jsonl`` and ``tensorboard/STAGE``; None writes no file.
        console: for progress and notes.
        observer: called with each line written; it gets facts and changes nothing.
    """

    def __init__(
        self, folder: Path | None = None, *, console: Console | None = None, observer: Observer | None = None
    ) -> None:
        self.folder = folder
        self.console = console or Console(enabled=False)
        self.observer = observer
        self._failed = False

    def stage(self, name: str, *, total: int, done: int = 0, every: int = 10) -> StageLog:
        """The log of one stage from step `done` on; lines of later steps, written before a crash, are removed."""
        if self.folder is not None:
            truncate(self.folder / METRICS, name, done)
        return StageLog(self, name, total=total, done=done, every=every)

    def append(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """One line of ``metrics.jsonl``. A disk that is full is said once, and training goes on."""
        if self.folder is None or self._failed:
            return
        line = json.dumps({"stage": stage, "step": step, **{name: _plain(value) for name, value in values.items()}})
        try:
            with open(self.folder / METRICS, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            self.trouble(METRICS, error)

    def trouble(self, what: str, error: Exception) -> None:
        """Says once that something that is not vital could not be written."""
        if not self._failed:
            self.console.note(f"warning: could not write {what} ({error}); training goes on without it")
        self._failed = True


class StageLog:
    """Means over `every` steps go out as one line; the console shows each step."""

    def __init__(self, log: Log, name: str, *, total: int, done: int, every: int) -> None:
        self.log, self.name, self.total, self.every = log, name, total, every
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}
        self._times: deque[tuple[float, int, int]] = deque(maxlen=64)  # when, steps done, images seen
        self._times.append((time.monotonic(), done, 0))
        self._images = 0
        self._text = ""
        self._progress = log.console.progress(name, total=total, done=done)
        self._board = self._tensorboard(done) if total > done else None

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        if self._board is not None:
            self._board.close()

    def step(self, done: int, values: Mapping[str, Tensor | float], *, images: int) -> dict[str, float] | None:
        """`done` steps are done; `values` are means over this step's `images`. Nothing waits for the device in between.

        Returns what was written, if this step is one at which a line is.
        """
        self._images += images
        self._times.append((time.monotonic(), done, self._images))
        for name, value in values.items():
            detached = value.detach() if isinstance(value, Tensor) else value
            self._sums[name] = self._sums.get(name, 0.0) + detached
            self._counts[name] = self._counts.get(name, 0) + 1
        line = self._flush(done) if done % self.every == 0 or done == self.total or self._text == "" else None
        self._progress.update(done, self._text)
        return line

    def _flush(self, done: int) -> dict[str, float]:
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        (then, before, seen), (now, _, _) = self._times[0], self._times[-1]
        elapsed = max(now - then, 1e-9)
        speed = {"steps_per_second": (done - before) / elapsed, "images_per_second": (self._images - seen) / elapsed}
        self._text = self._line(means, speed, (self.total - done) / max(speed["steps_per_second"], 1e-9))
        self.write(done, {**means, **speed})
        return {**means, **speed}

    def _line(self, means: Mapping[str, float], speed: Mapping[str, float], left: float) -> str:
        loss = f"loss {means['loss']:.4f}, " if "loss" in means else ""
        return f"{loss}{speed['images_per_second']:.0f} images/s, {duration(left)} left"

    def write(self, done: int, values: Mapping[str, float]) -> None:
        """Values of step `done` as they are: for validation and the like."""
        self.log.append(self.name, done, values)
        if self._board is not None:
            try:
                for name, value in values.items():
                    self._board.add_scalar(name, value, done)
            except OSError as error:
                self.log.trouble("TensorBoard events", error)
        if self.log.observer is not None:
            self.log.observer(self.name, done, values)

    def alarm(self, done: int, text: str) -> None:
        """Something that a person should look at: on the console, in ``metrics.jsonl`` and so in the report."""
        self.log.console.note(f"warning: {self.name}: {text}")
        self.log.append(self.name, done, {"alarm": text})

    def _tensorboard(self, done: int) -> SummaryWriter | None:
        if self.log.folder is None:
            return None
        from torch.utils.tensorboard import SummaryWriter  # half a second

        try:
            folder = self.log.folder / "tensorboard" / self.name
            return SummaryWriter(str(folder), purge_step=done + 1 if done else None)
        except OSError as error:
            self.log.trouble("TensorBoard events", error)
            return None


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a torn or foreign line is passed over."""
    lines = []
    for text in path.read_text("utf-8", "replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "stage" in line and "step" in line:
            lines.append(line)
    return lines


def truncate(path: Path, stage: str, step: int) -> None:
    """Removes what a process wrote after the checkpoint of `step` that its successor continues from."""
    if not path.is_file():
        return
    kept = [line for line in read(path) if line["stage"] != stage or line["step"] <= step]
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None  # JSON has no inf and nan
    return value
