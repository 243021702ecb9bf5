"""The evaluations of a run: each in a directory of its own under ``evaluations/``, none ever overwritten. Loads no torch.

``evaluation.json`` beside them is the run's own: the newest that training itself ended with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldmkit.errors import DataError
from ldmkit.evaluation.results import Figure, Results

FOLDER, FILE = "evaluations", "evaluation.json"


@dataclass(frozen=True)
class Kept:
    """An evaluation and the directory it lies in, such as ``evaluations/003``."""

    folder: Path
    results: Results


def new_folder(run: Path) -> Path:
    """A directory for the next evaluation of a run, made now: the first number after all that are there."""
    parent = run / FOLDER
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        numbers = [int(path.name) for path in parent.iterdir() if path.name.isdecimal()]
        folder = parent / f"{max(numbers, default=0) + 1:03d}"
        try:
            folder.mkdir()
        except FileExistsError:  # another process was faster
            continue
        return folder


def kept(run: Path, damaged: list[str] | None = None) -> list[Kept]:
    """The evaluations of a run, the oldest first. What cannot be read is passed over, and named in `damaged`."""
    return list(_readable(run, [] if damaged is None else damaged))


def _readable(run: Path, damaged: list[str]) -> Iterator[Kept]:
    folders = [path for path in (run / FOLDER).glob("*") if path.name.isdecimal() and (path / FILE).is_file()]
    for folder in sorted(folders, key=lambda path: int(path.name)):
        try:
            yield Kept(folder, Results.load(folder / FILE))
        except (DataError, OSError) as error:
            damaged.append(f"{folder.name}/{FILE} cannot be read: {error}")


def comparable(results: Results, other: Results) -> bool:
    """Whether both were measured in the same way: sampling, weights, rows and seeds."""
    ways = [
        (each.n, each.seed, dict(each.sampling), each.settings.get("weights"), each.settings.get("step"))
        for each in (results, other)
    ]
    return ways[0] == ways[1]


def combined(own: Results, others: Sequence[Results]) -> Results:
    """The run's own evaluation with the newest figure of every kind that was measured in the same way.

    A figure of another way (fewer samples, other guidance) never takes the place of one that is there.
    """
    figures = {key(figure): figure for figure in own.figures}
    unavailable = dict(own.unavailable)
    for other in others:
        if comparable(own, other):
            figures |= {key(figure): figure for figure in other.figures}
            measured = set(other.settings.get("metrics", ())) - set(other.unavailable)
            unavailable = {name: why for name, why in unavailable.items() if name not in measured}
    return replace(own, figures=tuple(figures.values()), unavailable=unavailable)


def key(figure: Figure) -> tuple[str, str, str | None]:
    """What tells the figures of one evaluation apart."""
    return figure.name, figure.title, figure.slot
