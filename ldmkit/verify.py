"""Proves on a person's own recipe that an interrupted run ends with the same bits as an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmkit import plugins
from ldmkit.errors import CheckpointError, UsageError
from ldmkit.hookspecs import hookimpl
from ldmkit.recipe import Recipe
from ldmkit.training.console import Console

STAGES = ("autoencoder", "first-stage", "diffusion")


@dataclass(frozen=True)
class Verification:
    """What came out of `verify_resume`."""

    steps: int
    killed_after: int
    files: Mapping[str, tuple[str, str]]  # file -> sha256 without and with interruption

    @property
    def different(self) -> list[str]:
        """The files whose bits differ; none is what is promised."""
        return [name for name, (one, other) in self.files.items() if one != other]

    @property
    def same(self) -> bool:
        """Whether every weight, average, moment and counter is the same."""
        return bool(self.files) and not self.different


def verify_resume(
    recipe: Recipe,
    n: int = 6,
    k: int = 3,
    *,
    plugin_files: Sequence[str] = (),
    folder: Path | None = None,
    console: Console | None = None,
) -> Verification:
    """Trains `n` steps of each stage in one go; then again, killed in step `k` + 1 of each stage, and on; compares all state.

    Each process is a new one, with one thread (sums of another number of threads have other last bits).

    Args:
        recipe: any; its steps and intervals are replaced, and nothing is evaluated.
        n, k: 1 <= k < n.
        plugin_files: plugins given with ``-p``.
        folder: where the two runs are made; default: a temporary directory.

    Raises:
        UsageError: k is not between 1 and n - 1.
        CheckpointError: a process ended otherwise than planned; what it said is in the message.
    """
    if not 1 <= k < n:
        raise UsageError(f"k is {k} and n is {n}; k lies between 1 and n - 1")
    from ldmkit.build import fit  # torch

    console = console or Console(enabled=False)
    with tempfile.TemporaryDirectory(prefix="ldmkit-verify-") as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        file = place / "recipe.json"
        fitted = fit(recipe, plugins.load(files=plugin_files))
        file.write_text(json.dumps(shortened(fitted, n, k).resolved(redact=False)), "utf-8")
        console.note(f"{n} steps of each stage in one go")
        _process(file, place / "whole", plugin_files, die=None)
        for stage in ("autoencoder", "diffusion") if recipe.autoencoder.train is not None else ("diffusion",):
            console.note(f"again, killed in step {k + 1} of the {stage} stage")
            _process(file, place / "parts", plugin_files, die=(stage, k + 1))
        console.note("and on to the end")
        _process(file, place / "parts", plugin_files, die=None)
        return Verification(n, k, _compare(place / "whole", place / "parts"))


def shortened(recipe: Recipe, n: int, k: int) -> Recipe:
    """The recipe with `n` steps of each stage, a checkpoint every `k`, and as little besides as can be."""
    changes: dict[str, Any] = {"evaluate": [], "runtime.threads": 1, "sample.count": 2, "sample.steps": 1}
    sections = ["train"] if recipe.autoencoder.train is None else ["train", "autoencoder.train"]
    for section in sections:
        intervals = {"checkpoint_every": k, "log_every": 1, "sample_every": 10**9, "validate_every": 10**9}
        for key, value in {"steps": n, **intervals}.items():
            changes[f"{section}.{key}"] = value
    return recipe.updated(changes)


def _process(file: Path, out: Path, plugin_files: Sequence[str], die: tuple[str, int] | None) -> None:
    arguments = {"file": str(file), "out": str(out), "plugins": list(plugin_files), "die": die}
    command = [sys.executable, "-c", "from ldmkit.verify import child; child()", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    expected = 0 if die is None else -signal.SIGKILL
    if done.returncode != expected:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        raise CheckpointError(f"a run of the recipe ended with {done.returncode}, and said: {said[-1]}", where=str(out))


def child() -> None:
    """One process of `verify_resume`; its arguments are JSON in ``sys.argv[1]``."""
    from ldmkit.run import run

    arguments = json.loads(sys.argv[1])
    recipe = Recipe.parse(json.loads(Path(arguments["file"]).read_text("utf-8")))
    killer = [] if arguments["die"] is None else [_Killer(*arguments["die"])]
    registry = plugins.load(files=arguments["plugins"], extra=killer)
    run(recipe, arguments["out"], registry=registry, console=False)


class _Killer:
    """An observer that kills the process as the power goes: no handler, no clean-up."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step = stage, step

    @hookimpl
    def ldmkit_step_logged(self, run: Any, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.step and run.status.get("stage") == self.stage:
            os.kill(os.getpid(), signal.SIGKILL)


def _compare(whole: Path, parts: Path) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for stage in STAGES:
        one, other = _checksums(whole / "checkpoints" / stage), _checksums(parts / "checkpoints" / stage)
        for name in sorted({*one, *other}):
            found[f"{stage}/{name}"] = (one.get(name, "missing"), other.get(name, "missing"))
    return found


def _checksums(folder: Path) -> dict[str, str]:
    from ldmkit.training.checkpoint import Checkpoints

    newest = Checkpoints(folder).newest()
    if newest is None:
        return {}
    return {name: entry["sha256"] for name, entry in newest.manifest["files"].items()}
