"""`kill -9` at random moments of a real run: the same command goes on, and ends with the same bits."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from ldmkit import plugins
from ldmkit.recipe import Recipe
from ldmkit.runs.run import run
from tests.conftest import ended, started
from tests.runs.conftest import FEW

STAGES = ("autoencoder", "first-stage", "scale", "diffusion")


@pytest.mark.slow
def test_killed_at_random_moments(
    tmp_path: Path, recipe: Callable[..., Recipe], bits: Callable[[Path, str], dict[str, str]]
) -> None:
    steps = {"autoencoder__train__checkpoint_every": 1, "train__checkpoint_every": 1, "train__sample_every": 1000}
    plain = recipe(data=FEW, conditioners={}, evaluate=[], **steps)
    registry = plugins.load(only=[])

    def begin(name: str) -> ForkServerProcess:
        return started(lambda: run(plain, tmp_path / name, registry=registry, console=False))

    assert ended(started(int)) == 0  # the server of processes is there: its imports are no part of the run's time
    begun = time.monotonic()
    assert ended(begin("whole")) == 0
    took = time.monotonic() - begun
    moments, killed = random.Random(7), 0
    for _ in range(3):
        child = begin("parts")
        time.sleep(took * moments.uniform(0.1, 0.9))
        child.kill()
        killed += ended(child) == -signal.SIGKILL
    assert ended(begin("parts")) == 0
    assert killed >= 1
    found, expected = ([bits(tmp_path / name, stage) for stage in STAGES] for name in ("parts", "whole"))
    assert found == expected
    assert sum(map(len, expected)) >= 8
