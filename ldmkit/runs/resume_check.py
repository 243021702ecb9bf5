"""Proves on a person's own recipe that an interrupted run ends with the same bits as an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmkit import plugins
from ldmkit.errors import CheckpointError, ResourceError, UsageError
from ldmkit.plugins.hookspecs import hookimpl
from ldmkit.recipe import Recipe
from ldmkit.training.logging.console import Console

STAGES = ("autoencoder", "first-stage", "scale", "diffusion")


@dataclass(frozen=True)
class Verification:
    """What came out of `verify_resume`."""

    steps: int
    killed_after: int
    files: Mapping[str, tuple[str, str]]  # file -> sha256 without and with interruption
    first: str | None = None  # the first tensor that differs, and by how much

    @property
    def different(self) -> list[str]:
        """The files whose bits differ; none is what is promised."""
        return [name for name, (one, other) in self.files.items() if one != other]

    @property
    def same(self) -> bool:
        """Whether every weight, average, moment and counter is the same."""
        return bool(self.files) and not self.different

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        files = {name: {"whole": one, "interrupted": other} for name, (one, other) in self.files.items()}
        about = {"steps": self.steps, "killed_after": self.killed_after, "same": self.same, "first": self.first}
        return {**about, "files": files}


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
        UsageError: k is not between 1 and n - 1, or the data come through a shuffle buffer that no checkpoint can hold.
        CheckpointError: a process ended otherwise than planned; what it said is in the message.
        ResourceError: there is no place for the two runs.
    """
    if not 1 <= k < n:
        raise UsageError(f"k is {k} and n is {n}; k lies between 1 and n - 1")
    from ldmkit.assembly import fit, source_of  # torch

    registry = plugins.load(files=plugin_files)
    if not source_of(recipe.validate_components(registry), registry).exact:
        raise UsageError(
            f"the data source {recipe.data.type} mixes samples in a library's shuffle buffer, which is lost when a run stops: "
            "an interrupted run sees other samples than an uninterrupted one",
            hint="leave data.shuffle_buffer out; shards in a drawn order and a permutation inside them resume exactly",
        )
    console = console or Console(enabled=False)
    with _place(folder) as place:
        file = place / "recipe.json"
        fitted = fit(recipe, registry)
        file.write_text(json.dumps(shortened(fitted, n, k, place).resolved(redact=False)), "utf-8")
        console.note(f"{n} steps of each stage in one go")
        _process(file, place / "whole", plugin_files, die=None)
        for stage in ("autoencoder", "diffusion") if recipe.autoencoder.train is not None else ("diffusion",):
            console.note(f"again, killed in step {k + 1} of the {stage} stage")
            _process(file, place / "parts", plugin_files, die=(stage, k + 1))
        console.note("and on to the end")
        _process(file, place / "parts", plugin_files, die=None)
        compared = _compare(place / "whole", place / "parts")
        return Verification(n, k, compared, _first(place / "whole", place / "parts", compared))


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    """The folder, or one that is gone in the end."""
    try:
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="ldmkit-verify-")
        else:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"no directory can be made for the two runs: {error.strerror or error}",
            hint="name a place with room in the variable TMPDIR",
        ) from error
    if folder is not None:
        yield folder
        return
    with temporary as path:
        yield Path(path)


def shortened(recipe: Recipe, n: int, k: int, folder: Path | None = None) -> Recipe:
    """The recipe with `n` steps of each stage, a checkpoint every `k`, and as little besides as can be.

    What begins later than that (the adversarial game, a slot that is frozen at first, codes that are revived) begins before the
    kill, so that its state is compared too. Latents that are cached are encoded once for both runs, in `folder`.
    """
    changes: dict[str, Any] = {"evaluate": [], "sample.count": 2, "sample.steps": 1}
    changes |= {"runtime.threads": 1, "runtime.trackers": []}
    if recipe.runtime.precision == "auto":
        from ldmkit.training.runtime import resolve

        # Else each of the two runs would measure for itself.
        changes["runtime.precision"] = resolve(device=recipe.runtime.device).precision
    if recipe.runtime.cache == "auto" and folder is not None:
        changes["runtime.cache"] = str(folder / "latents")
    sections = ["train"] if recipe.autoencoder.train is None else ["train", "autoencoder.train"]
    for section in sections:
        intervals = {"checkpoint_every": k, "log_every": 1, "sample_every": 10**9, "validate_every": 10**9}
        for key, value in {"steps": n, **intervals}.items():
            changes[f"{section}.{key}"] = value
    return recipe.updated(changes | _brought_forward(recipe.resolved(redact=False), k))


def _brought_forward(resolved: Mapping[str, Any], k: int) -> dict[str, Any]:
    """What waits for a later step, to be begun in step `k` at the latest."""
    own = resolved["autoencoder"]
    game = (own.get("loss") or {}).get("adversarial") or {}
    waits = {"autoencoder.loss.adversarial.start": game.get("start"), "autoencoder.revive": own.get("revive")}
    waits |= {f"conditioners.{name}.freeze": slot.get("freeze") for name, slot in resolved["conditioners"].items()}
    found = {key: step for key, step in waits.items() if isinstance(step, int) and not isinstance(step, bool)}
    return {key: max(k - 1, 1) if key.endswith("revive") else k - 1 for key, step in found.items() if step >= k}


def _process(file: Path, out: Path, plugin_files: Sequence[str], die: tuple[str, int] | None) -> None:
    arguments = {"file": str(file), "out": str(out), "plugins": list(plugin_files), "die": die}
    command = [sys.executable, "-c", "from ldmkit.runs.resume_check import child; child()", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    expected = 0 if die is None else -signal.SIGKILL
    if done.returncode != expected:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        raise CheckpointError(f"a run of the recipe ended with {done.returncode}, and said: {said[-1]}", where=str(out))


def child() -> None:
    """One process of `verify_resume`; its arguments are JSON in ``sys.argv[1]``."""
    from ldmkit.runs.run import run

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


def _first(whole: Path, parts: Path, files: Mapping[str, tuple[str, str]]) -> str | None:
    """Names what differs first: a tensor and how far apart its values are, or a file that one of the runs has not."""
    name = next((name for name, (one, other) in files.items() if one != other), None)
    if name is None or "missing" in files[name] or not name.endswith(".safetensors"):
        return name
    from ldmkit.training.checkpointing.checkpoints import Checkpoints

    stage, file = name.split("/")
    newest = [Checkpoints(run / "checkpoints" / stage).newest() for run in (whole, parts)]
    one, other = (c.tensors(file.removesuffix(".safetensors")) for c in newest if c is not None)
    for key, value in one.items():
        if key not in other or other[key].shape != value.shape:
            return f"{name}: {key} is not in both"
        if not bool((value == other[key]).all()):
            return f"{name}: {key} differs by up to {float((value.double() - other[key].double()).abs().max()):.3g}"
    return f"{name}: the same tensors in another order or type"


def _checksums(folder: Path) -> dict[str, str]:
    from ldmkit.training.checkpointing.checkpoints import Checkpoints

    newest = Checkpoints(folder).newest()
    if newest is None:
        return {}
    return {name: entry["sha256"] for name, entry in newest.manifest["files"].items()}
