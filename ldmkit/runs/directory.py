"""A run's directory: who holds it, what it was made with, how far it is. Loads no torch."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import yaml

from ldmkit.errors import LdmkitError, RecipeError, ResourceError
from ldmkit.files import TEMPORARY, write_text
from ldmkit.plugins import Registry
from ldmkit.recipe import load as load_recipe
from ldmkit.training.checkpointing.lock import Lock, unwritable
from ldmkit.training.checkpointing.lock import now as now  # the time in every file of a run

RECIPE, STATUS, CHECKPOINTS = "recipe.resolved.yaml", "status.json", "checkpoints"
ASIDE = ".model-*"  # the directory that becomes ``model``
State = Literal["running", "interrupted", "failed", "finished"]
PACKAGES = ("ldmkit", "torch", "numpy", "pillow", "safetensors", "lpips", "timm", "transformers", "scipy")

# What may change between two starts of one run. Everything else decides what the model is or what it sees.
FREE = ("train", "autoencoder.train", "sample", "evaluate", "runtime", "name", "schema", "extends", "source")
# Where the data lie may change too; whether they are the same is told by their content (`ldmkit.training.data_fingerprint`).
PLACES = ("data.path", "data.maps", "data.checksums")
FREE_IN_SLOT = ("lr", "weight_decay")


@dataclass(frozen=True)
class Difference:
    """A key whose value is not what the run was started with."""

    key: str
    was: Any
    now: Any

    @property
    def allowed(self) -> bool:
        """Whether a run may go on with it."""
        parts = self.key.split(".")
        if parts[0] == "conditioners" and len(parts) >= 3 and parts[2] in FREE_IN_SLOT:
            return True
        return self.key in PLACES or any(self.key == free or self.key.startswith(f"{free}.") for free in FREE)

    def __str__(self) -> str:
        return f"{self.key}: {_short(self.was)} -> {_short(self.now)}"


class RunDirectory:
    """The directory of one run, locked while it is open; use it as a context manager.

    Args:
        path: made if it is not there.
        fresh: an old run there is renamed to ``NAME.1``, ``NAME.2`` ... ; nothing is deleted.
        holder: whether this process is the one that locks and writes; False for the other processes of the same run.

    Raises (on entering):
        ResourceError: another process runs there, or the place cannot be written.
    """

    def __init__(self, path: Path, *, fresh: bool = False, holder: bool = True) -> None:
        self.path, self.fresh, self.holder = path, fresh, holder
        self.moved: Path | None = None  # where `fresh` put the old run
        self._lock = Lock(path)
        self._status: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if not self.holder:
            return self
        self._lock.acquire()
        if self.fresh and any((self.path / name).exists() for name in (RECIPE, STATUS, CHECKPOINTS)):
            self._lock.release()
            self.moved = self._move_away()
            self._lock.acquire()
        self._sweep()
        self._status = self.status()
        return self

    def _move_away(self) -> Path:
        moved = next(p for p in _numbered(self.path) if not p.exists())
        try:
            os.rename(self.path, moved)
        except OSError as error:
            raise ResourceError(
                f"cannot rename {self.path} to {moved}: {error.strerror or error}",
                hint="a directory that is mounted cannot be renamed: give another one with --out DIR",
            ) from error
        return moved

    def _sweep(self) -> None:
        """Removes what a process that died had begun to write; whoever holds the lock is the only one that writes here."""
        for path in [*self.path.glob(f"{TEMPORARY}*"), *self.path.glob(f"samples/{TEMPORARY}*")]:
            with contextlib.suppress(OSError):
                path.unlink()
        for path in self.path.glob(ASIDE):
            shutil.rmtree(path, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    # what it was made with

    def recipe(self) -> dict[str, Any] | None:
        """The resolved recipe that the run was started with, or None for a new directory.

        Raises:
            RecipeError: the file is there, and is none.
        """
        path = self.path / RECIPE
        if not path.is_file():
            return None
        try:
            loaded = yaml.safe_load(path.read_text("utf-8"))
            if not isinstance(loaded, dict):
                raise ValueError("it holds no keys")
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise RecipeError(
                f"{path} is unreadable: {error}", hint="start anew with --fresh, which renames this directory"
            ) from error
        return loaded

    def write_recipe(self, text: str) -> None:
        """Replaces the resolved recipe.

        Raises:
            ResourceError: it cannot be written.
        """
        if not self.holder:
            return
        try:
            write_text(self.path / RECIPE, text)
        except OSError as error:
            raise unwritable(self.path, error) from error

    @property
    def begun(self) -> bool:
        """Whether anything was trained here. Until then a recipe may still be mended, its path to the data say."""
        folder = self.path / CHECKPOINTS
        return folder.is_dir() and any(folder.iterdir())

    def check(self, resolved: Mapping[str, Any], registry: Registry | None = None) -> list[Difference]:
        """What differs from the recipe the run was started with; all of it is allowed.

        A key that the version which began the run did not know counts as its default; with `registry`, also a plugin's.

        Raises:
            RecipeError: the model or the data changed; the keys and the ways out are named.
        """
        before = self.recipe() if self.begun else None
        if before is not None:
            before = _with_new_defaults(before, self.path / RECIPE, registry)
        found = differences(_without_learned(before, resolved), resolved) if before is not None else []
        if refused := [d for d in found if not d.allowed]:
            listed = "\n".join(f"    {difference}" for difference in refused)
            raise RecipeError(
                f"{self.path} holds a run of another model or other data; these keys differ:\n{listed}",
                hint="--out DIR trains this recipe somewhere else; --fresh starts it here and renames the old directory",
            )
        return found

    # how far it is

    def status(self) -> dict[str, Any]:
        """The last status written, or nothing."""
        return read_status(self.path)

    def write_status(self, state: State, **facts: Any) -> None:
        """Merges `facts` into ``status.json``. It is for people and scripts; no decision here rests on it."""
        if not self.holder:
            return
        changed = {"state": state, "updated": now(), "pid": os.getpid(), "host": socket.gethostname()}
        self._status = {**self._status, **changed, **facts}
        with contextlib.suppress(OSError):  # a full disk shows itself where it matters
            write_text(self.path / STATUS, json.dumps(self._status, indent=1))

    def failed(self, error: BaseException, exit_code: int) -> None:
        """Records what ended the run."""
        code = error.code if isinstance(error, LdmkitError) else "interrupted" if exit_code > 128 else "internal"
        about = {"code": code, "type": type(error).__name__, "message": str(error)}
        self.write_status("interrupted" if exit_code > 128 else "failed", exit_code=exit_code, error=about)


def longer_first_stage(steps: int, trained: int) -> RecipeError:
    """What is said where the autoencoder is to be trained on, and the diffusion stage stands on it already."""
    return RecipeError(
        f"autoencoder.train.steps is {steps}, and the diffusion stage has begun on an autoencoder of {trained} steps",
        hint="leave it at what it was, or train anew with --out DIR or --fresh",
    )


def read_status(path: Path) -> dict[str, Any]:
    """The ``status.json`` of a run, {} where there is none or half of one."""
    try:
        loaded = json.loads((path / STATUS).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def differences(before: Any, after: Any, key: str = "") -> list[Difference]:
    """Where two trees of mappings differ, as dotted keys."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = [*before, *(name for name in after if name not in before)]
        found = []
        for name in keys:
            found += differences(before.get(name), after.get(name), f"{key}.{name}" if key else str(name))
        return found
    return [] if _plain(before) == _plain(after) else [Difference(key, before, after)]


def _with_new_defaults(before: Mapping[str, Any], path: Path, registry: Registry | None) -> dict[str, Any]:
    """`before`, the recipe in the file `path`, with the defaults of the keys that it does not have."""
    try:
        return _filled(before, load_recipe(path, registry=registry).resolved())
    except LdmkitError:  # it is of another version, or a plugin of then is not here: compared as it stands
        return dict(before)


def _filled(value: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    filled = {**defaults, **value}
    for key, inner in value.items():
        if isinstance(inner, dict) and isinstance(defaults.get(key), dict):
            filled[key] = _filled(inner, defaults[key])
    return filled


def _without_learned(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a run without what its conditioners learned from the data, which nobody writes down."""
    slots = now.get("conditioners") or {}
    kept = {
        name: {k: v for k, v in options.items() if v is None or name not in slots or slots[name].get(k) is not None}
        for name, options in (before.get("conditioners") or {}).items()
    }
    return {**before, "conditioners": kept} if "conditioners" in now else {**before}


def learned(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> what a run's conditioners learned from the data, where the recipe now says nothing."""
    slots = now.get("conditioners") or {}
    return {
        f"conditioners.{name}.{key}": value
        for name, options in (before.get("conditioners") or {}).items()
        for key, value in options.items()
        if value is not None and name in slots and slots[name].get(key) is None
    }


def versions(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What is installed here, for `status.json` and the manifests."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, **(extra or {})}


def _numbered(path: Path) -> Iterator[Path]:
    number = 1
    while True:
        yield path.with_name(f"{path.name}.{number}")
        number += 1


def _plain(value: Any) -> Any:
    """Tuples are lists once they were written as YAML."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(_plain(value), default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
