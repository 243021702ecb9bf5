"""Data workers: processes that read and prepare runs of positions, and end with the process they work for."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ldmkit.conditioning import Tensors
from ldmkit.data.examples import Example, Examples
from ldmkit.data.sample import Problem
from ldmkit.errors import LdmkitError, PluginError, ResourceError
from ldmkit.plugins.single_file import Sent

TIMEOUT = 300  # seconds a worker may take over one batch before it counts as hung
POLL = 5  # seconds after which a look is taken whether all workers are alive: the kernel tells only the fork server


Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _Answer:
    """What a worker sends for one run of positions. Arrays, not tensors: they go through the pipe, and need neither
    /dev/shm nor a file descriptor each."""

    images: NDArray[np.float32]
    prepared: list[dict[str, Arrays | None]]
    problems: list[Problem]
    error: BaseException | None = None


class _Runs(TorchDataset[_Answer]):
    """A run of positions -> an answer, in a worker."""

    def __init__(self, examples: Examples) -> None:
        self.sent, self.told = Sent(examples), 0

    def __getitem__(self, run: range) -> _Answer:
        examples: Examples = self.sent.value
        try:
            rows = [examples[position] for position in run]
        except LdmkitError as error:  # handed over as it is: a worker's traceback would bury it
            error.add_note(f"In a data worker:\n{traceback.format_exc()}")  # for --debug
            return _Answer(np.empty(0, np.float32), [], [], error)
        return _Answer(
            np.stack([row.image.numpy() for row in rows]),
            [{slot: _arrays(tensors) for slot, tensors in row.prepared.items()} for row in rows],
            self._news(examples),
        )

    def _news(self, examples: Examples) -> list[Problem]:
        """What went wrong since the last answer."""
        found = list(examples.dataset.substituted)[self.told :]
        self.told += len(found)
        return found


def in_workers(examples: Examples, runs: Iterable[range], workers: int, timeout: int) -> Iterator[list[Example]]:
    """The examples of each run of positions, in order.

    Raises `ResourceError` for a worker that died or was silent for `timeout` seconds, and whatever a sample raised.
    """
    _check_picklable(examples)
    asked: list[range] = []

    def remembered() -> Iterator[range]:
        for run in runs:
            asked.append(run)
            yield run

    loader = DataLoader(
        _Runs(examples),
        batch_size=None,
        sampler=_Endless(remembered()),
        num_workers=workers,
        collate_fn=_unchanged,
        timeout=min(POLL, timeout),
        multiprocessing_context=_context(),
        worker_init_fn=_end_with_parent,
        prefetch_factor=4,
    )
    for answer in _waited_for(iter(loader), timeout):
        if answer.error is not None:
            raise answer.error
        for problem in answer.problems:
            examples.dataset.report(problem)
        yield [
            Example(position, torch.from_numpy(image), {slot: _tensors(own) for slot, own in row.items()})
            for position, image, row in zip(asked.pop(0), answer.images, answer.prepared, strict=True)
        ]


def _waited_for(answers: Iterator[_Answer], timeout: int) -> Iterator[_Answer]:
    waited = 0
    while True:
        try:
            yield next(answers)
            waited = 0
        except StopIteration:
            return
        except RuntimeError as error:
            waited += min(POLL, timeout)
            if "timed out" not in str(error) or waited >= timeout:
                raise _worker_failure(error, timeout) from error


def _context() -> BaseContext:
    """How workers start: never by a bare fork, which copies other threads' locks. torch is imported once for all of them."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def _end_with_parent(worker: int) -> None:
    """Nobody ends a worker whose process was killed: its parent is the fork server, which lives as long as it has children."""
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Endless:
    """An iterator as torch's sampler wants it."""

    def __init__(self, runs: Iterator[range]) -> None:
        self.runs = runs

    def __iter__(self) -> Iterator[range]:
        return self.runs


def _unchanged(answer: Any) -> Any:
    return answer


def _arrays(tensors: Tensors | None) -> Arrays | None:
    return None if tensors is None else {name: value.numpy() for name, value in tensors.items()}


def _tensors(arrays: Arrays | None) -> Tensors | None:
    return None if arrays is None else {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}


def _check_picklable(examples: Examples) -> None:
    """Names what cannot be sent to a worker; torch's own message names only the type."""
    parts = {"data source": examples.dataset.source, **{f"slot {s}": c.conditioner for s, c in examples.copies.items()}}
    for name, part in parts.items():
        _check_class(name, part)
        for attribute, value in vars(part).items():
            try:
                content = pickle.dumps(value)
            except Exception as error:  # pickling runs any class's own code
                raise PluginError(
                    f"the {name} ({type(part).__name__}) cannot be sent to a data worker: its attribute {attribute!r}: {error}",
                    hint="use a function or class of a module in its place, or set runtime.workers to 0",
                ) from error
            if b"__main__" in content and not _main_is_file():
                raise _defined_here(f"the attribute {attribute!r} of the {name} ({type(part).__name__})")
    pickle.dumps(examples)


def _check_class(name: str, part: object) -> None:
    """A worker imports the class; it cannot import what a notebook, `python -c` or a function defines."""
    kind = type(part)
    if kind.__module__ == "__main__" and not _main_is_file():
        raise _defined_here(f"the class {kind.__name__} of the {name}")
    try:
        pickle.dumps(kind)
    except Exception as error:
        raise PluginError(
            f"the {name} ({kind.__qualname__}) cannot be sent to a data worker: {error}",
            hint="define the class at the top level of a module, or set runtime.workers to 0",
        ) from error


def _main_is_file() -> bool:
    """Whether a worker can run the main program's file again, and finds there what is defined in it."""
    return os.path.isfile(getattr(sys.modules["__main__"], "__file__", None) or "")


def _defined_here(what: str) -> PluginError:
    return PluginError(
        f"{what} is defined in a notebook or on the command line (__main__), and a data worker cannot import it from there",
        hint="put it into a file, my_plugin.py, and give that (-p my_plugin.py, plugins.load(files=...)); or set "
        "runtime.workers to 0",
    )


def _worker_failure(error: RuntimeError, timeout: int = TIMEOUT) -> Exception:
    text = str(error)
    if "exited unexpectedly" in text:
        return ResourceError(
            f"a data worker died: {text.splitlines()[0]}",
            hint="most often the system was out of memory: try runtime.workers=0, fewer workers or a smaller batch",
        )
    if "timed out" in text:
        return ResourceError(
            f"a data worker gave no batch for {timeout} seconds",
            hint="a network file system may hang: copy the data to a local disk, or try runtime.workers=0; where a batch does "
            "take so long, raise runtime.worker_timeout",
        )
    return error
