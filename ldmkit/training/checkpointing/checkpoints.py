"""A stage's checkpoints: published whole, the newest valid one wins, old ones pruned."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldmkit.errors import CheckpointError, DivergedError
from ldmkit.training.checkpointing import atomic_dir
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.parallel.shards import on_first

PREFIX = "step-"
STATE = "trainer"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on the first rank's disk. With several ranks, all of them call each method."""

    path: Path
    step: int
    manifest: Mapping[str, Any]
    state: Mapping[str, Any]  # JSON values
    ranks: Ranks = field(default=Ranks(), repr=False, compare=False)

    def has(self, name: str) -> bool:
        """Whether there are tensors called `name`."""
        return f"{name}.safetensors" in self.manifest["files"]

    def tensors(self, name: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The tensors saved as `name`.

        Raises:
            CheckpointError: there are none, or a value is not finite.
        """
        if not self.has(name):
            raise CheckpointError(f"{self.path} has no {name}.safetensors", hint="start anew with --fresh")
        tensors = self.ranks.share(lambda: self._read(name))
        return {key: value.to(device) for key, value in tensors.items()}

    def _read(self, name: str) -> dict[str, Tensor]:
        tensors = load_file(self.path / f"{name}.safetensors")
        if bad := first_not_finite(tensors):
            raise CheckpointError(
                f"the tensor {bad} holds values that are not finite",
                hint=f"take another checkpoint: without {self.path.name} a run continues from the one before it",
                where=f"{self.path / name}.safetensors",
            )
        return tensors


class Checkpoints:
    """The checkpoints of one stage in `folder`: ``step-00000120/{NAME.safetensors ..., trainer.json, MANIFEST.json}``.

    Args:
        folder: made at the first save.
        keep: how many of the newest stay; the one with the lowest score stays too.
        facts: JSON values for every manifest (versions and the like).
        ranks: the run's processes. The first one reads and writes, and the others get what it read: `folder` is its own.
            One format for any number of them: tensors that are split among the ranks are saved whole.
    """

    def __init__(
        self, folder: Path, *, keep: int = 2, facts: Mapping[str, Any] | None = None, ranks: Ranks | None = None
    ) -> None:
        assert keep >= 1
        self.folder, self.keep, self.facts = folder, keep, dict(facts or {})
        self.ranks = ranks or Ranks()
        self.skipped: list[str] = []  # what `newest` found damaged, for a person to read

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        *,
        score: float | None = None,
    ) -> None:
        """Publishes a checkpoint, then prunes. A valid one of the same step is kept as it is.

        Raises:
            ResourceError: the disk did not take it; those before are intact.
            DivergedError: a tensor is not finite; such a state is not worth keeping.
        """
        whole = {name: on_first(content, self.ranks) for name, content in tensors.items()}
        self.ranks.decide(lambda: self._save(step, whole, state, score))

    def _save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], score: float | None
    ) -> None:
        for name, content in tensors.items():
            if bad := first_not_finite(content):
                raise DivergedError(
                    f"{bad} ({name}) is not finite at step {step}: not saved",
                    hint="the checkpoints before are intact; a lower `lr`, a longer `warmup` or `precision: fp32` helps",
                )
        known = score is not None and math.isfinite(score)  # nothing held out, nothing to compare
        manifest = {**self.facts, "step": step, "score": score if known else None}
        atomic_dir.publish(self.folder / f"{PREFIX}{step:08d}", tensors, {STATE: state}, manifest)
        self._prune()

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose manifest verifies, or None; damaged ones go to `skipped`."""
        return self._of_all(self.ranks.decide(self._newest))

    def continued(self) -> Checkpoint | None:
        """`newest`, for a stage that must not begin anew without being told to; None where nothing was saved yet.

        Raises:
            CheckpointError: there are checkpoints, and not one of them is as it was written.
        """
        return self._of_all(self.ranks.decide(self._continued))

    def _of_all(self, found: Checkpoint | None) -> Checkpoint | None:
        return None if found is None else replace(found, ranks=self.ranks)

    def _continued(self) -> Checkpoint | None:
        found = self._newest()
        if found is None and self.skipped:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is intact ({'; '.join(self.skipped)})",
                hint=f"bring back a copy; or begin this stage anew: delete {self.folder}, or the whole run: --fresh",
            )
        return found

    def _newest(self) -> Checkpoint | None:
        self.skipped.clear()
        for path in reversed(self._paths()):
            try:
                return _open(path)
            except atomic_dir.DamagedError as reason:
                self.skipped.append(f"{path.name}: {reason}")
        return None

    def all(self) -> list[Checkpoint]:
        """Every checkpoint whose manifest verifies, oldest first; for readers, which are no ranks of the run."""
        found = []
        for path in self._paths():
            with contextlib.suppress(atomic_dir.DamagedError):
                found.append(_open(path))
        return found

    def sweep(self) -> None:
        """Removes leftovers of a process that died."""
        if self.ranks.first:
            atomic_dir.sweep(self.folder)

    def _paths(self) -> list[Path]:
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        steps = [path for path in found if path.name.removeprefix(PREFIX).isdecimal()]
        return sorted(steps, key=lambda path: int(path.name.removeprefix(PREFIX)))

    def _prune(self) -> None:
        paths = self._paths()
        old = paths[: -self.keep]
        if not old:
            return
        try:
            atomic_dir.verify(paths[-1])
        except atomic_dir.DamagedError:
            return
        best = min(paths, key=_score)
        for path in old:
            if path != best or _score(best) == math.inf:
                with contextlib.suppress(OSError):  # an old one too many is no reason to stop
                    atomic_dir.discard(path)


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with an inf or nan, or None."""
    floats = {name: value for name, value in tensors.items() if value.is_floating_point() and value.numel()}
    if not floats:
        return None
    norms = torch._foreach_norm(list(floats.values()), float("inf"))
    good = torch.stack([norm.cpu().double() for norm in norms]).isfinite()
    return None if bool(good.all()) else list(floats)[int(good.logical_not().nonzero()[0])]


def _open(path: Path) -> Checkpoint:
    manifest = atomic_dir.verify(path)
    state_file = f"{STATE}.json"
    if state_file not in manifest["files"]:
        raise atomic_dir.DamagedError(f"{state_file} is missing")
    state = json.loads((path / state_file).read_bytes())
    return Checkpoint(path, int(manifest["step"]), manifest, state)


def _score(path: Path) -> float:
    try:
        score = float(json.loads((path / atomic_dir.MANIFEST).read_bytes())["score"])
    except (OSError, ValueError, KeyError, TypeError):  # None among them: nothing was held out
        return math.inf
    return score if math.isfinite(score) else math.inf
