"""Numbers and pictures to Weights & Biases, MLflow, trackio ..., through the trackers of Accelerate.

They are company for `metrics.jsonl`: one that fails in the middle of a run is left out from there on, and the run goes on.
"""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmkit.errors import ResourceError

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT = "ldmkit"
MEMORY = "trackers.json"  # in the run's directory: under which ids the run is known elsewhere
BUILT_IN = ("tensorboard",)  # written in any case


class Trackers:
    """What is tracked elsewhere under one name; a run that continues continues there too.

    Args:
        names: as `runtime.trackers` of a recipe has them.
        folder: the run's directory.
        configuration: the resolved recipe, secrets left out.
        offsets: stage -> steps of the stages before it: elsewhere, steps of one run only go up.
        warn: prints a line for the person.

    Raises:
        ResourceError: Accelerate or the tracker's own package is not installed, or it did not start.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        folder: Path,
        configuration: Mapping[str, Any],
        offsets: Mapping[str, int],
        warn: Callable[[str], None],
    ) -> None:
        self.offsets, self.warn = dict(offsets), warn
        self.open: dict[str, Any] = {}  # trackers of Accelerate, which has no types
        kinds = _kinds(names)
        memory = _remembered(folder)
        for name, kind in kinds.items():
            try:
                self.open[name] = _started(name, kind, folder, memory)
                self.open[name].store_init_configuration(dict(_flat(configuration)))
            except Exception as error:  # no network, no login ...: the libraries have no common base
                raise ResourceError(
                    f"runtime.trackers: {name} did not start: {type(error).__name__}: {error}",
                    hint=f"see that {name} works by itself here, or leave it out",
                ) from error
        if kinds:
            (folder / MEMORY).write_text(json.dumps(memory), "utf-8")

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Values of a stage's step."""
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self._each(lambda name, tracker: tracker.log(named, step=self._step(stage, step)))

    def picture(self, stage: str, step: int, image: Image, path: Path) -> None:
        """A contact sheet, which lies at `path` too."""

        def show(name: str, tracker: Any) -> None:
            if name == "wandb":
                tracker.log_images({f"{stage}/samples": [image]}, step=self._step(stage, step))
            elif name == "mlflow":
                tracker.log_artifact(str(path), "samples")

        self._each(show)

    def finish(self) -> None:
        """The run is over, or stopped."""
        self._each(lambda name, tracker: tracker.finish())
        self.open.clear()

    def _step(self, stage: str, step: int) -> int:
        return self.offsets.get(stage, 0) + step

    def _each(self, act: Callable[[str, Any], object]) -> None:
        for name, tracker in list(self.open.items()):
            try:
                act(name, tracker)
            except Exception as error:  # a network that is down is no reason to stop
                del self.open[name]
                self.warn(f"warning: {name} failed ({type(error).__name__}: {error}); training goes on without it")


def _kinds(names: Sequence[str]) -> dict[str, Any]:
    """Name -> class of Accelerate, where the packages behind them are here."""
    if not names:
        return {}
    try:
        from accelerate import PartialState, tracking  # type: ignore[import-untyped]
    except ImportError as error:
        raise ResourceError(
            f"runtime.trackers is {', '.join(names)}, which goes through accelerate, and that is not installed",
            hint="pip install 'ldmkit[trackers]', or leave `trackers` out",
        ) from error
    PartialState()  # its trackers ask it which process they are in; only the first one of ours comes here
    known = tracking.LOGGER_TYPE_TO_CLASS
    allowed = [name for name in known if name not in BUILT_IN]
    for name in names:
        if name not in allowed:
            raise ResourceError(f"runtime.trackers names {name!r}; there are {', '.join(allowed)}")
        own = known[name].__module__ == "accelerate.tracking"  # a class that somebody registered knows what it needs
        if own and importlib.util.find_spec(name) is None:
            raise ResourceError(
                f"runtime.trackers names {name}, and the package {name} is not installed",
                hint=f"pip install {name}, or leave it out; metrics.jsonl and TensorBoard are written in any case",
            )
    return {name: known[name] for name in names}


def _started(name: str, kind: Any, folder: Path, memory: dict[str, str]) -> Any:
    key = memory.setdefault("id", uuid.uuid4().hex[:12])
    options: dict[str, Any] = {"logging_dir": str(folder / "trackers")} if kind.requires_logging_directory else {}
    if name == "wandb":
        options |= {"name": folder.name, "id": key, "resume": "allow", "dir": str(folder)}
    elif name == "trackio":
        options |= {"name": f"{folder.name}-{key}", "resume": "allow"}
    elif name == "mlflow":
        options |= {"run_name": folder.name, "run_id": memory.get(name)}
    tracker = kind(PROJECT, **options)
    tracker.start()
    if name == "mlflow":
        memory[name] = str(tracker.tracker.info.run_id)
    return tracker


def _remembered(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / MEMORY).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _flat(tree: Any, key: str = "") -> Iterable[tuple[str, str | float | bool]]:
    """A tree as dotted keys with plain values; lists as text."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    elif tree is not None:
        yield key, tree if isinstance(tree, (str, int, float, bool)) else json.dumps(tree, default=str)
