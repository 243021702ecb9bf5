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
    """A shell starts what it runs in the background with SIGINT ignored, which a run respects; here it is not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
