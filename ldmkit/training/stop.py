"""Signals: finish the step, save, stop. Loads no torch."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
HANGUP = getattr(signal, "SIGHUP", None)
ECHO = 0.03  # seconds; `timeout` signals its child and then the group the child is in, faster than any hand


class Interrupted(Exception):  # noqa: N818 - it is not an error
    """A run that a signal ended in good order. `exit_code` is 130 for SIGINT and 143 for SIGTERM and SIGHUP."""

    elsewhere = False  # whether another process of the same run says it to the user

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.message, self.exit_code = message, exit_code

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Interrupted, exit_code=self.exit_code), (self.message,), vars(self)


class Stop:
    """The one flag that every loop polls; handlers only set it.

    ```python
    with Stop() as stop:
        for step in range(steps):
            ...
            if stop.requested: save, then stop.check()
    ```

    A second signal acts at once, as if there were no handler; within `grace` seconds it counts as the first one, for a scheduler
    may signal a launcher and its processes, and the launcher hands it on. SIGHUP is never a second one: a shell that hangs up
    passes it on, and then the kernel sends its own. Outside the main thread no handler is installed and `request` is the only
    way to set the flag.
    """

    def __init__(self, *, grace: float = 0.0) -> None:
        self.grace = max(grace, ECHO)
        self._since = 0.0
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal, self._since = number, time.monotonic()
        elif number != HANGUP and time.monotonic() - self._since >= self.grace:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def request(self, number: int = signal.SIGTERM) -> None:
        """Asks for a stop as the signal `number` would."""
        self._signal = int(number)

    @property
    def requested(self) -> bool:
        """True from the first signal on."""
        if self._signal is not None and self._previous and self.grace <= ECHO:
            self._let_go()
        return self._signal is not None

    def _let_go(self) -> None:
        """From now on a signal acts even where no Python runs to hear it: while a large file is written, say."""
        if threading.current_thread() is not threading.main_thread():
            return
        time.sleep(max(0.0, self._since + ECHO - time.monotonic()))
        for number in self._previous:
            if number != HANGUP:
                signal.signal(number, signal.SIG_DFL)

    @property
    def number(self) -> int | None:
        """Which signal came, if one did."""
        return self._signal

    def check(self, doing: str = "") -> None:
        """Raises `Interrupted` if a signal came; for loops with nothing to save."""
        if self._signal is None:
            return
        name = signal.Signals(self._signal).name
        raise Interrupted(
            f"stopped by {name}{f' while {doing}' if doing else ''}",
            exit_code=130 if self._signal == signal.SIGINT else 143,
        )
