"""One thread in each test, checksums, and several processes: forks that find each other as a launcher's processes do."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.parallel.launch import launched
from ldmkit.training.parallel.ranks import Ranks

PATIENCE = 300.0  # seconds; far more than any of them needs on a busy machine

Action = Callable[[Ranks], Any]
ABORTED = {-signal.SIGABRT, -signal.SIGSEGV}


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
    """What `action` gives on each of `count` ranks; an exception comes back as a value, as does the code of one that died."""

    def attempt(count: int, action: Action, joined: bool) -> list[int]:
        port = free_port()
        return _wait([_fork(rank, count, port, action, tmp_path, joined) for rank in range(count)])

    def run(count: int, action: Action, *, joined: bool = True) -> list[Any]:
        """`joined` False leaves it to the action to call `launched`."""
        codes = attempt(count, action, joined)
        if ABORTED & set(codes):
            # Rarely (once in some hundred times) a collective of torch's gloo finds the heap of a fork damaged, and the C library
            # ends it. No test here ends a rank so; the second attempt goes on from the checkpoints of the first.
            print(f"ranks ended with {codes}: a second attempt", file=sys.stderr)
            codes = attempt(count, action, joined)
        return [_read(tmp_path / f"answer-{rank}.pt", code) for rank, code in enumerate(codes)]

    return run


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def forked(action: Callable[[], Any]) -> int:
    """A process that does this in one thread. It ends with 0, or with 1 after an exception, shown where the test fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads; none of ours is alive
        child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        action()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def ended(child: int) -> int:
    """The exit code of a process, when it has ended; of one that a signal killed, minus its number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _fork(rank: int, count: int, port: int, action: Action, folder: Path, joined: bool) -> int:
    def act() -> None:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
        os.environ.update({name: str(value) for name, value in place.items()})
        torch.save(_answer(rank, action, joined), folder / f"tmp-{rank}")
        os.replace(folder / f"tmp-{rank}", folder / f"answer-{rank}.pt")

    return forked(act)


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
    found = torch.load(answer, weights_only=False)
    answer.unlink()
    return found


def _wait(children: list[int]) -> list[int]:
    codes: dict[int, int] = {}
    end = time.monotonic() + PATIENCE
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            for child in set(children) - set(codes):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise AssertionError(f"{len(children) - len(codes)} of {len(children)} processes hang")
        time.sleep(0.02)
    return [codes[child] for child in children]
