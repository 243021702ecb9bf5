"""What a person sees: a live display on a terminal, plain lines elsewhere. Loads no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Self

import rich.console
import rich.progress
import rich.table

PLAIN_INTERVAL = 5.0  # seconds between the progress lines of a pipe


class Console:
    """Prints notes, tables and progress; never raises because nobody listens (a closed pipe, a narrow code page).

    Args:
        enabled: False prints nothing.
        file: where to; default: standard output.
    """

    def __init__(self, *, enabled: bool = True, file: IO[str] | None = None) -> None:
        self.file = file or sys.stdout
        self.enabled = enabled
        self.rich = rich.console.Console(file=self.file, highlight=False, soft_wrap=True)
        # Variables such as FORCE_COLOR make rich call a pipe a terminal, and a live display is ten frames a second there.
        self.live = enabled and _is_terminal(self.file) and self.rich.is_terminal and not self.rich.is_dumb_terminal

    def note(self, text: str = "") -> None:
        """One line, above the live display if there is one."""
        if not self.enabled:
            return
        try:
            if self.live:
                self.rich.print(text, markup=False)
            else:
                print(text, file=self.file, flush=True)
        except UnicodeEncodeError:
            print(text.encode("ascii", "replace").decode(), file=self.file, flush=True)
        except (OSError, ValueError):  # the reader of the pipe has gone
            self.enabled = self.live = False

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Two columns, the first one in the width of its longest word."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, text in rows:
            self.note(f"  {name:<{width}}  {text}")

    def progress(self, name: str, *, total: int, done: int = 0) -> Progress:
        """A display of `done` out of `total`, to be used as a context manager."""
        return Progress(self, name, total=total, done=done)


class Progress:
    """One bar on a terminal, one line every few seconds elsewhere."""

    def __init__(self, console: Console, name: str, *, total: int, done: int) -> None:
        self.console, self.name, self.total, self.done = console, name, total, done
        self._bar: rich.progress.Progress | None = None
        self._next_line = time.monotonic() + PLAIN_INTERVAL
        self._text = ""
        self._said = ""  # the last line

    def __enter__(self) -> Self:
        if self.console.live and self.total:
            columns = (
                rich.progress.TextColumn("{task.description:<12}"),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[text]}"),
            )
            self._bar = rich.progress.Progress(*columns, console=self.console.rich, refresh_per_second=4)
            self._bar.add_task(self.name, total=self.total, completed=self.done, text="")
            self._bar.start()
        return self

    def update(self, done: int, text: str = "") -> None:
        """`done` steps are done; `text` says the loss and the like (kept where empty)."""
        self.done, self._text = done, text or self._text
        if self._bar is not None:
            self._bar.update(rich.progress.TaskID(0), completed=done, text=self._text)
        elif time.monotonic() >= self._next_line:
            self._line()

    def _line(self) -> None:
        self._next_line = time.monotonic() + PLAIN_INTERVAL
        line = f"{self.name} {self.done}/{self.total}  {self._text}".rstrip()
        if line != self._said:
            self.console.note(line)
        self._said = line

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.total and not self.console.live:
            self._line()


def _is_terminal(file: IO[str]) -> bool:
    try:
        return file.isatty()
    except (AttributeError, ValueError):  # a stream of somebody's own, or a closed one
        return False


def duration(seconds: float) -> str:
    """``41 s``, ``3:05 min``, ``2:10 h``."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
