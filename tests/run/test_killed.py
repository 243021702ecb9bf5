"""`kill -9` at random moments of a real run: the same command goes on, and ends with the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ldmkit.recipe import Recipe

# One process imports everything, starts no thread, and forks each run: an import each would take longer than the run.
KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
import sklearn.datasets, torch, torch.utils.tensorboard
from ldmkit import plugins
from ldmkit.recipe import Recipe
from ldmkit.run import run
from ldmkit.training.checkpoint import Checkpoints
import ldmkit.stages

place = Path(sys.argv[1])
recipe = Recipe.parse(json.loads((place / "recipe.json").read_text()))
registry = plugins.load(only=[])

def begin(name):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        try:
            run(recipe, place / name, registry=registry, console=False)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def bits(name):
    found = {}
    for stage in ("autoencoder", "first-stage", "scale", "diffusion"):
        newest = Checkpoints(place / name / "checkpoints" / stage).newest()
        found |= {f"{stage}/{file}": entry["sha256"] for file, entry in newest.manifest["files"].items()}
    return found

begun = time.monotonic()
assert ended(begin("whole")) == 0
took = time.monotonic() - begun
moments, killed = random.Random(7), 0
for _ in range(3):
    child = begin("parts")
    time.sleep(took * moments.uniform(0.1, 0.9))
    os.kill(child, signal.SIGKILL)
    killed += ended(child) == -signal.SIGKILL
assert ended(begin("parts")) == 0
print(json.dumps({"killed": killed, "same": bits("parts") == bits("whole"), "files": len(bits("whole"))}))
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    steps = {"autoencoder__train__checkpoint_every": 1, "train__checkpoint_every": 1, "train__sample_every": 1000}
    plain = recipe(data={"type": "digits", "size": 32}, conditioners={}, evaluate=[], **steps)
    (tmp_path / "recipe.json").write_text(json.dumps(plain.resolved(redact=False)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLS, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] >= 1
    assert found["same"]
    assert found["files"] >= 8
