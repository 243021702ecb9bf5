"""What could not be read, said and written down: `bad_samples.jsonl` of a run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from ldmkit.data import Problem
from ldmkit.images.files import printable
from ldmkit.training.logging.console import Console

FILE = "bad_samples.jsonl"
SAID = 5  # of each kind, one line each; the file has all


class BadSamples:
    """Takes the problems of a run's data, each once, and says the first ones. Other pictures stand in for them.

    Args:
        folder: the run's directory; its list is continued.
    """

    def __init__(self, folder: Path, console: Console) -> None:
        self.path, self.console = folder / FILE, console
        self.count = 0
        self._known = self._read()

    def found(self, problems: Sequence[Problem]) -> None:
        """What the sources passed over before anything was trained."""
        for problem in problems:
            self._write(problem)
        for skipped, what in ((True, "left out"), (False, "used with a remark")):
            if own := [problem for problem in problems if problem.skipped == skipped]:
                files = "1 file is" if len(own) == 1 else f"{len(own)} files are"
                first = f"{printable(own[0].path)}: {own[0].reason}"
                self.console.note(f"  note: {files} {what} (see {self.path.name}), for example {first}")

    def __call__(self, problem: Problem) -> None:
        """One that was met on the way."""
        self.count += 1
        self._write(problem)
        if self.count <= SAID:
            self.console.note(f"warning: {printable(problem.path)} cannot be used, another stands in: {problem.reason}")
        if self.count == SAID:
            self.console.note(f"  further ones are only written to {self.path}")

    def summary(self) -> str | None:
        """How many were met on the way."""
        if not self.count:
            return None
        some = "1 sample" if self.count == 1 else f"{self.count} samples"
        return f"{some} could not be read, and others stood in: {self.path}"

    def _write(self, problem: Problem) -> None:
        line = json.dumps({"path": printable(problem.path), "reason": problem.reason, "skipped": problem.skipped})
        if line in self._known:
            return
        self._known.add(line)
        with contextlib.suppress(OSError), open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")  # a full disk shows itself elsewhere

    def _read(self) -> set[str]:
        try:
            return set(self.path.read_text("utf-8").splitlines())
        except (OSError, ValueError):
            return set()
