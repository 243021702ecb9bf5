"""What was computed once for every sample: on the disk in shards, in memory too where it is small. A build that stops goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ldmkit.errors import ResourceError
from ldmkit.training.checkpointing.atomic_dir import DamagedError, discard, publish, sweep, verify
from ldmkit.training.logging.console import Console
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.stop import Stop

if sys.platform != "win32":
    import fcntl

SHARD = 2048  # items a file
LARGEST = 2 * 2**30  # bytes that are kept in memory
NAME = "latents"  # of the file in a shard's directory

Rows = dict[str, Tensor]  # name -> (rows, ...)
Make = Callable[[Sequence[int]], Rows]


class Kept:
    """Rows of named tensors, by item.

    Args:
        shards: the rows of each shard, or the directory they are read from when they are asked for.
        items: the items of each shard, in the order of its rows.
    """

    def __init__(self, shards: Sequence[Rows | Path], items: Sequence[Sequence[int]]) -> None:
        self.shards = list(shards)
        count = sum(len(own) for own in items)
        self._shard, self._row = torch.empty(count, dtype=torch.long), torch.empty(count, dtype=torch.long)
        for number, own in enumerate(items):
            self._shard[torch.as_tensor(own)] = number
            self._row[torch.as_tensor(own)] = torch.arange(len(own))

    def __len__(self) -> int:
        return len(self._row)

    def row(self, item: int) -> Rows:
        """What was computed for one item, without the dimension of the rows."""
        shard, row = self.shards[int(self._shard[item])], int(self._row[item])
        if isinstance(shard, Path):
            with safe_open(shard / f"{NAME}.safetensors", framework="pt") as file:  # mapped: only these rows are read
                return {name: file.get_slice(name)[row : row + 1][0] for name in file.keys()}  # noqa: SIM118
        return {name: value[row] for name, value in shard.items()}

    def rows(self, items: Sequence[int]) -> Rows:
        """What was computed for items of one size."""
        found = [self.row(item) for item in items]
        return {name: torch.stack([row[name] for row in found]) for name in found[0]}


def build(
    place: Path,
    groups: Sequence[Sequence[int]],
    make: Make,
    *,
    key: str,
    what: str,
    join: Callable[[list[Rows]], Rows],
    batch: int = 64,
    console: Console | None = None,
    stop: Stop | None = None,
    ranks: Ranks | None = None,
) -> Kept:
    """Computes what is missing in ``place/shard-00000`` and on, and opens all of it.

    Two runs that share a place take turns: the second one finds what the first one made. Of several ranks the first builds, and
    gives the others what is kept in memory; larger things they read from `place` themselves.

    Args:
        groups: all items, in groups whose rows have the same shapes.
        make: items, at most `batch` of a group -> their rows.
        join: the rows of a shard's parts -> those of the shard.

    Raises:
        Interrupted: a signal came; finished shards stay.
        ResourceError: a rank does not see the first one's files.
    """
    ranks, console = ranks or Ranks(), console or Console(enabled=False)
    shards = [list(group[first : first + SHARD]) for group in groups for first in range(0, len(group), SHARD)]
    paths = [place / f"shard-{number:05d}" for number in range(len(shards))]

    def made() -> bool:
        with _turn(place, console, stop), console.progress(what, total=sum(map(len, shards))) as progress:
            sweep(place)
            done = 0
            for path, items in zip(paths, shards, strict=True):
                if not _valid(path):
                    parts = []
                    for start in range(0, len(items), batch):
                        parts.append(make(items[start : start + batch]))
                        progress.update(done + min(start + batch, len(items)))
                        if stop is not None:
                            stop.check(f"computing {what}, {progress.done} of {progress.total}")
                    publish(path, {NAME: join(parts)}, {}, {"key": key})
                done += len(items)
                progress.update(done)
        return sum((path / f"{NAME}.safetensors").stat().st_size for path in paths) <= LARGEST

    if not ranks.decide(made):
        if missing := [path for path in paths if not path.is_dir()]:
            raise ResourceError(
                f"this process does not see {missing[0]}, which the first process of the run wrote",
                hint="give runtime.cache a directory on a file system that all machines share, or off",
            )
        return Kept(paths, shards)
    flat = ranks.share(lambda: {f"{n}/{k}": v for n, path in enumerate(paths) for k, v in _load(path).items()})
    return Kept([_numbered(flat, number) for number in range(len(shards))], shards)


def joined(parts: list[Rows]) -> Rows:
    """Rows of equal shapes, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _valid(path: Path) -> bool:
    if not path.is_dir():
        return False
    try:
        verify(path)
    except DamagedError:
        discard(path)
        return False
    return True


def _load(path: Path) -> Rows:
    """Copies: a mapped file that somebody replaces would change, or end, under us."""
    return {name: value.clone() for name, value in load_file(path / f"{NAME}.safetensors").items()}


def _numbered(flat: Mapping[str, Tensor], number: int) -> Rows:
    prefix = f"{number}/"
    return {name.removeprefix(prefix): value for name, value in flat.items() if name.startswith(prefix)}


@contextmanager
def _turn(place: Path, console: Console, stop: Stop | None) -> Iterator[None]:
    """Held by whoever builds here. Where the file system has no locks, nobody waits."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = open(place / ".lock", "a+")  # noqa: SIM115 - held while building
    except OSError as error:
        raise ResourceError(
            f"cannot write to {place}: {error.strerror or error}",
            hint="choose another directory: runtime.cache=PATH, or off",
        ) from error
    with lock:
        if not _locked(lock):
            console.note(f"another run is computing the same in {place}; waiting for it")
            while not _locked(lock):
                time.sleep(0.2)
                if stop is not None:
                    stop.check("waiting for another run")
        yield


def _locked(file: IO[str]) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # ENOLCK on some network file systems
        return True
    return True
