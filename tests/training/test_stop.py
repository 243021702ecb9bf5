from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ldmkit.training.stop import Interrupted, Stop


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """A shell ignores SIGINT in what it runs in the background, and nohup SIGHUP, which a run respects; here they are heard."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_signal_sets_the_flag_and_the_loop_decides_when(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with Stop() as stop:
        stop.check("doing nothing")
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(Interrupted, match=f"stopped by {number.name} while caching") as caught:
            stop.check("caching")
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before


def test_a_request_is_a_signal_without_one() -> None:
    stop = Stop()
    stop.request()
    with pytest.raises(Interrupted) as caught:
        stop.check()
    assert caught.value.exit_code == 143


SLOW = """
import time
from ldmkit.training.stop import Stop
with Stop() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("finishing the step", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_acts_at_once(number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "finishing the step\n"
    assert process.poll() is None
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(10) == -number
    assert time.monotonic() - begun < 5
    process.stdout.close()


BUSY = """
import hashlib
from ldmkit.training.stop import Stop
with Stop() as stop:
    print("ready", flush=True)
    while not stop.requested:
        pass
    print("saving", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)  # as deaf as a large file that is written
"""


def test_a_second_signal_acts_where_no_python_runs() -> None:
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    process.stdout.close()


@pytest.mark.parametrize("several", [False, True])
def test_an_echo_is_no_second_signal(several: bool) -> None:
    """`timeout` signals its child and its group; a shell that hangs up passes SIGHUP on, and the kernel sends another."""
    with Stop(grace=10.0 if several else 0.0) as stop:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP])
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGHUP])
        assert stop.requested
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGHUP)  # later than any echo of another
        assert stop.number in (signal.SIGTERM, signal.SIGHUP)


def test_afterwards_signals_do_what_they_did() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
