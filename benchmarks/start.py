"""What a person waits for before anything is trained: CPU seconds of processes of their own, the least of several."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORTS = {
    "ldmkit --help": [sys.executable, "-m", "ldmkit", "--help"],
    "ldmkit recipe check superres": [sys.executable, "-m", "ldmkit", "recipe", "check", "superres"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import ldmkit": [sys.executable, "-c", "import ldmkit"],
    "import diffusers' UNet and pipeline": [
        sys.executable,
        "-c",
        "from diffusers import DiffusionPipeline, UNet2DModel",
    ],
}
FIRST_STEP = """
import os, sys
from ldmkit import hookimpl, plugins
from ldmkit.recipe import Recipe
import ldmkit

class First:
    @hookimpl
    def ldmkit_step_logged(self, run, step, metrics):
        os._exit(0)

from ldmkit.runs.run import run
recipe = ldmkit.load_recipe("superres", ("autoencoder.train.log_every=1",))
run(recipe, sys.argv[1], registry=plugins.load(extra=[First()]), console=False)
"""


def children() -> float:
    """CPU seconds of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def spent(command: list[str]) -> float:
    """CPU seconds of one process and those it starts."""
    before = children()
    subprocess.run(command, check=True, capture_output=True)
    return children() - before


def measure(rounds: int) -> dict[str, float]:
    """Seconds by what was started."""
    found = {name: min(spent(command) for _ in range(rounds)) for name, command in IMPORTS.items()}
    with tempfile.TemporaryDirectory() as folder:
        places = [str(Path(folder) / str(number)) for number in range(rounds)]
        found["superres, up to the first training step"] = min(
            spent([sys.executable, "-c", FIRST_STEP, place]) for place in places
        )
    return found
