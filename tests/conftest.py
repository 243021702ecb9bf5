"""One thread in each test, checksums, and several processes: children that find each other as a launcher's processes do."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch

from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.parallel.launch import launched
from ldmkit.training.parallel.ranks import Ranks

PATIENCE = 300.0  # seconds; far more than any of them needs on a busy machine
# What children would each import anew, for seconds. Modules alone: nothing is computed before a child is made.
IMPORTED = [
    "pytest",
    "cloudpickle",
    "ldmkit.runs.run",
    "ldmkit.runs.stages",
    "ldmkit.runs.resume_check",
    "torch.distributed.fsdp",
]

Action = Callable[[Ranks], Any]


# Sums of another number of threads have other last bits; and networks as small as the tests' gain nothing by more.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A test that asks for more threads, as a recipe may, leaves the next one with one."""
    yield
    torch.set_num_threads(1)


def checksums(folder: Path) -> dict[str, str]:
    """Of everything in the newest checkpoint of a stage: weights, average, optimizers, counters."""
    newest = Checkpoints(folder).newest()
    assert newest is not None
    return {name: entry["sha256"] for name, entry in newest.manifest["files"].items()}


@pytest.fixture
def in_ranks(tmp_path: Path) -> Callable[[int, Action], list[Any]]:
    """What `action` gives on each of `count` ranks; an exception comes back as a value, as does the code of one that died.

    The action and what it refers to are pickled: a rank sees no attribute that a test has patched, and a test none that a rank
    has changed.
    """

    def run(count: int, action: Action, *, joined: bool = True) -> list[Any]:
        """`joined` False leaves it to the action to call `launched`."""
        port = free_port()
        codes = _wait([_rank(rank, count, port, action, tmp_path, joined) for rank in range(count)])
        return [_read(tmp_path / f"answer-{rank}.pt", code) for rank, code in enumerate(codes)]

    return run


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def started(action: Callable[[], Any]) -> ForkServerProcess:
    """A process that does this in one thread. It ends with 0, or with 1 after an exception, shown where the test fails.

    It is no fork of this process, which has computed, and has threads (of torch, of TensorBoard) that a fork would lack in the
    middle of what they did; but of a server that has imported modules and done nothing else.
    """
    child = _context().Process(target=_act, args=(cloudpickle.dumps(action), sys.path), daemon=False)
    child.start()
    return child


def ended(child: ForkServerProcess) -> int:
    """The exit code of a process, when it has ended; of one that a signal killed, minus its number."""
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def _act(pickled: bytes, path: list[str]) -> None:
    sys.path[:] = path
    torch.set_num_threads(1)
    try:
        cloudpickle.loads(pickled)()
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as after a kill: no handler of an exit waits for a rank that is gone


def _rank(rank: int, count: int, port: int, action: Action, folder: Path, joined: bool) -> ForkServerProcess:
    def act() -> None:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
        os.environ.update({name: str(value) for name, value in place.items()})
        with open(folder / f"tmp-{rank}", "wb") as file:
            cloudpickle.dump(_answer(rank, action, joined), file)
        os.replace(folder / f"tmp-{rank}", folder / f"answer-{rank}.pt")

    return started(act)


def _answer(rank: int, action: Action, joined: bool) -> Any:
    try:
        if not joined:
            return action(Ranks(rank))
        with launched() as ranks:
            return action(ranks)
    except Exception as error:
        traceback.print_exc()  # shown where the test fails
        error.__cause__ = error.__context__ = error.__traceback__ = None
        return error


def _read(answer: Path, code: int) -> Any:
    if not answer.exists():
        return code
    found = cloudpickle.loads(answer.read_bytes())
    answer.unlink()
    return found


def _wait(children: list[ForkServerProcess]) -> list[int]:
    end = time.monotonic() + PATIENCE
    for child in children:
        child.join(max(end - time.monotonic(), 0.0))
    if hung := [child for child in children if child.exitcode is None]:
        for child in hung:
            child.kill()
            child.join()
        raise AssertionError(f"{len(hung)} of {len(children)} processes hang")
    return [ended(child) for child in children]
