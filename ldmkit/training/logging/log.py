"""Numbers and pictures on their way out: `metrics.jsonl`, TensorBoard, trackers, the console, observers."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from ldmkit.files import write_text
from ldmkit.training.logging.console import Console, duration
from ldmkit.training.logging.trackers import Trackers
from ldmkit.training.parallel.ranks import Ranks

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
EVENTS = "TensorBoard events"
GRACE = 30.0  # seconds between SIGTERM and SIGKILL that schedulers give unless told otherwise (Kubernetes, Slurm)
EXPLODED = 1000.0  # times the median of the losses before
Observer = Callable[[str, int, Mapping[str, float]], None]  # stage, step, values


class Log:
    """Where the stages write their numbers.

    Args:
        folder: holds ``metrics.jsonl`` and ``tensorboard/STAGE``; None writes no file.
        console: for progress and notes.
        observer: called with each line written; it gets facts and changes nothing.
        trackers: what is told besides.
        ranks: the run's processes, over which the steps' values are means; all but the first have neither folder nor listeners.

    As a context manager it tells the trackers that the run is over.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        console: Console | None = None,
        observer: Observer | None = None,
        trackers: Trackers | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.folder, self.ranks = folder, ranks or Ranks()
        self.console = console or Console(enabled=False)
        self.observer, self.trackers = observer, trackers
        self.current: StageLog | None = None
        self._troubles: set[str] = set()
        self._torn = False  # whether the last line may be half of one

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.trackers is not None:
            self.trackers.finish()

    def stage(self, name: str, *, total: int, done: int = 0, every: int = 10) -> StageLog:
        """The log of one stage from step `done` on; lines of later steps, written before a crash, are removed."""
        if self.folder is not None:
            try:
                truncate(self.folder / METRICS, name, done)
            except OSError as error:
                self.trouble(METRICS, error)
        self.current = StageLog(self, name, total=total, done=done, every=every)
        return self.current

    def picture(self, step: int, image: Image, path: Path) -> None:
        """A contact sheet of the stage that runs now, which was written to `path`: for TensorBoard and the trackers."""
        if self.current is not None:
            self.current.picture(step, image, path)

    def append(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """One line of ``metrics.jsonl``. A full disk is said once, and training goes on; later there may be room again."""
        if self.folder is None:
            return
        line = json.dumps({"stage": stage, "step": step, **{name: _plain(value) for name, value in values.items()}})
        try:
            with open(self.folder / METRICS, "a", encoding="utf-8") as file:
                file.write("\n" * self._torn + line + "\n")
            self._torn = False
        except OSError as error:
            self._torn = True
            self.trouble(METRICS, error)

    def trouble(self, what: str, error: Exception) -> None:
        """Says once that something that is not vital could not be written."""
        if what not in self._troubles:
            self.console.note(f"warning: could not write {what} ({error}); training goes on without it")
        self._troubles.add(what)


class StageLog:
    """Means over `every` steps go out as one line; the console shows each step."""

    def __init__(self, log: Log, name: str, *, total: int, done: int, every: int) -> None:
        self.log, self.name, self.total, self.every = log, name, total, every
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int | Tensor] = {}
        self._times: deque[tuple[float, int, int]] = deque(maxlen=64)  # when, steps done, images seen
        self._times.append((time.monotonic(), done, 0))
        self._images = 0
        self._losses: deque[float] = deque(maxlen=100)
        self._slow = False
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
        self._show(lambda board: board.close())
        self._board = None
        self.log.current = None

    def step(
        self, done: int, values: Mapping[str, Tensor | float], *, images: int, good: Tensor | None = None
    ) -> dict[str, float] | None:
        """`done` steps are done; `values` are means () over this step's `images`.

        Nothing waits for the device in between.

        `good` () bool, on the device: whether the values count; None: they do.

        Returns what was written, if this step is one at which a line is.
        """
        self._images += images
        self._times.append((time.monotonic(), done, self._images))
        for name, value in values.items():
            detached = value.detach() if isinstance(value, Tensor) else value
            if good is not None:
                detached = torch.where(good, torch.as_tensor(detached).to(good.device, non_blocking=True), 0.0)
            self._sums[name] = self._sums.get(name, 0.0) + detached
            self._counts[name] = self._counts.get(name, 0) + (1 if good is None else good.long())
        line = self._flush(done) if done % self.every == 0 or done == self.total or self._text == "" else None
        self._progress.update(done, self._text)
        return line

    def _flush(self, done: int) -> dict[str, float]:
        counts = {name: int(count) for name, count in self._counts.items()}
        means = self.log.ranks.means({n: float(total) / counts[n] for n, total in self._sums.items() if counts[n]})
        self._sums.clear()
        self._counts.clear()
        (then, before, seen), (now, _, _) = self._times[0], self._times[-1]
        elapsed = max(now - then, 1e-9)
        speed = {"steps_per_second": (done - before) / elapsed, "images_per_second": (self._images - seen) / elapsed}
        self._text = self._line(means, speed, (self.total - done) / max(speed["steps_per_second"], 1e-9))
        self.write(done, {**means, **speed})
        self._watch(done, means.get("loss", math.nan))
        return {**means, **speed}

    def _watch(self, done: int, loss: float) -> None:
        """A loss that is finite and out of all proportion."""
        usual = statistics.median(self._losses) if len(self._losses) >= 5 else math.inf
        if 0 < EXPLODED * usual < loss:
            self.alarm(
                done, f"the loss is {loss:.3g} at step {done}, and was {usual:.3g}; a lower `lr` or `clip` may help"
            )
        elif math.isfinite(loss):
            self._losses.append(loss)

    def _line(self, means: Mapping[str, float], speed: Mapping[str, float], left: float) -> str:
        loss = f"loss {means['loss']:.4f}, " if "loss" in means else ""
        return f"{loss}{speed['images_per_second']:.0f} images/s, {duration(left)} left"

    def write(self, done: int, values: Mapping[str, float]) -> None:
        """Values of step `done` as they are: for validation and the like."""
        self.log.append(self.name, done, values)
        self._show(lambda board: _draw(board, done, values))
        if self.log.trackers is not None:
            self.log.trackers.log(self.name, done, values)
        if self.log.observer is not None:
            self.log.observer(self.name, done, values)

    def picture(self, done: int, image: Image, path: Path) -> None:
        """See `Log.picture`."""
        pixels = np.asarray(image.convert("RGB"))
        self._show(lambda board: board.add_image("samples", pixels, done, dataformats="HWC"))
        if self.log.trackers is not None:
            self.log.trackers.picture(self.name, done, image, path)

    def _show(self, action: Callable[[SummaryWriter], None]) -> None:
        """On TensorBoard, until its disk is full: its own thread has ended then."""
        if self._board is None:
            return
        try:
            action(self._board)
        except OSError as error:
            self._board = None
            self.log.trouble(EVENTS, error)

    @contextmanager
    def saving(self, done: int) -> Iterator[None]:
        """Around the saving of a checkpoint: says once that it takes longer than a process may live after SIGTERM."""
        begun = time.monotonic()
        yield
        took = time.monotonic() - begun
        if took > GRACE / 2 and not self._slow:
            self._slow = True
            self.alarm(
                done,
                f"a checkpoint takes {took:.0f} s, and {GRACE:.0f} s is what many schedulers leave between SIGTERM and "
                "SIGKILL: ask for more, or a stop loses the steps since the checkpoint before",
            )

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
            self.log.trouble(EVENTS, error)
            return None


def _draw(board: SummaryWriter, done: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        board.add_scalar(name, value, done)


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
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None  # JSON has no inf and nan
    return value
