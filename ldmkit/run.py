"""`run`: one recipe from data to report, in one directory; the same call again continues. Loads torch when there is work."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmkit import plugins
from ldmkit.errors import LdmkitError, ResourceError
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.recipe import load as load_recipe
from ldmkit.rundir import Difference, RunDirectory, now, read_status, versions
from ldmkit.training.console import Console, duration
from ldmkit.training.stop import Interrupted, Stop

if TYPE_CHECKING:
    from ldmkit.evaluation import Results
    from ldmkit.latent_diffusion import LatentDiffusion

FINISHED = ("model/config.json", "evaluation.json", "report.html")


@dataclass(frozen=True)
class Run:
    """A run's directory, and what is in it."""

    path: Path
    recipe: Recipe

    @property
    def status(self) -> dict[str, Any]:
        """``status.json``: state, stage, step, what ended it."""
        return read_status(self.path)

    @cached_property
    def model(self) -> LatentDiffusion:
        """The trained model, with its average weights.

        Raises:
            CheckpointError: the run has not come to its end.
        """
        from ldmkit.build import load

        return load(self.path)

    @cached_property
    def results(self) -> Results:
        """What the evaluation found."""
        from ldmkit.evaluation import Results

        return Results.load(self.path / "evaluation.json")

    @property
    def metrics(self) -> dict[str, float]:
        """The evaluation's figures: ``name`` or ``name/slot`` -> value."""
        return {f"{f.name}/{f.slot}" if f.slot else f.name: f.value for f in self.results.figures}

    @property
    def report(self) -> Path:
        """The page to send to a colleague."""
        return self.path / "report.html"


def run(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    fresh: bool = False,
    registry: Registry | None = None,
    console: Console | bool = True,
) -> Run:
    """Trains, samples, evaluates and reports what a recipe says; continues what was begun, and says so where all is done.

    Args:
        recipe: a recipe, a file, or the name of a bundled one.
        out: the run's directory; default: ``runs/NAME``.
        fresh: start anew; a run that is there is renamed, nothing is deleted.
        registry: the plugins; default: all that are installed.
        console: where progress goes; True is standard output, False nowhere.

    Raises:
        Interrupted: a signal came; all is saved, the same call continues. `exit_code` is 130 or 143.
        RecipeError: the directory holds a run of another model or other data.
        ResourceError: the directory is in use or cannot be written, or memory or disk ran out.
        DivergedError: the numbers were not finite.
    """
    screen = console if isinstance(console, Console) else Console(enabled=console)
    registry = registry or plugins.load()
    asked = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    asked = asked.validate_components(registry)
    path = Path(out).expanduser() if out is not None else Path("runs") / asked.name
    result = Run(path, asked)
    with RunDirectory(path, fresh=fresh) as directory, Stop() as stop:
        if directory.moved is not None:
            screen.note(f"the old run is now {directory.moved}")
        changed = directory.check(asked.resolved())
        if _finished(directory, asked, changed):
            _say_finished(screen, result)
            return result
        for difference in changed:
            screen.note(f"  changed: {difference}")
        _begin(directory, registry)
        _work(result, directory, registry, screen, stop)
    return result


def _finished(directory: RunDirectory, recipe: Recipe, changed: list[Difference]) -> bool:
    """Whether there is nothing to do: as many steps as asked for are done, and nothing changed that shows in the result."""
    status = directory.status()
    if status.get("state") != "finished" or any(not (directory.path / name).is_file() for name in FINISHED):
        return False
    if any(difference.key.split(".")[0] in ("sample", "evaluate") for difference in changed):
        return False
    return int(status.get("done", 0)) >= recipe.train.steps


def _begin(directory: RunDirectory, registry: Registry) -> None:
    origins = {
        f"plugin {plugin.origin.entry_point or plugin.origin}": str(plugin.origin) for plugin in registry.plugins
    }
    directory.write_status(
        "running",
        started=directory.status().get("started") or now(),
        stage=None,
        exit_code=None,
        error=None,
        versions=versions(origins),
    )


def _work(result: Run, directory: RunDirectory, registry: Registry, screen: Console, stop: Stop) -> None:
    """The stages, with the observers told and the status kept whatever happens."""
    screen.note(f"{result.recipe.name} in {result.path}")
    try:
        registry.run_started(result)
        seconds, lines = _stages(result, directory, registry, screen, stop)
    except BaseException as error:
        failure = _translated(error)
        code = failure.exit_code if isinstance(failure, LdmkitError | Interrupted) else 1
        directory.failed(failure, code)
        registry.run_finished(result, failure)
        if isinstance(failure, Interrupted):
            screen.note(f"{failure.message}; the same command continues")
        if failure is error:
            raise
        raise failure from error
    directory.write_status("finished", stage=None, exit_code=0, done=result.recipe.train.steps, seconds=seconds)
    _report(result.path)
    registry.run_finished(result, None)
    _say_end(screen, result, lines, seconds)


def _stages(
    result: Run, directory: RunDirectory, registry: Registry, screen: Console, stop: Stop
) -> tuple[float, list[str]]:
    from ldmkit.stages import Stages  # torch, and all that comes with it

    def observer(stage: str, step: int, values: Mapping[str, float]) -> None:
        directory.write_status("running", stage=stage, step=step)
        registry.step_logged(result, step, values)

    stages = Stages(result.recipe, registry, directory, screen, stop, observer=observer, facts={"versions": versions()})
    results = stages.execute()
    return stages.seconds, results.lines()


def _report(path: Path) -> None:
    """After the status, which the page shows."""
    from ldmkit.evaluation import write_report

    write_report(path)


def _translated(error: BaseException) -> BaseException:
    """Memory and disks that are full say so in many ways."""
    text = str(error)
    memory = isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text
    if memory and not isinstance(error, LdmkitError):
        return ResourceError(
            f"out of memory: {text.splitlines()[0] if text else type(error).__name__}",
            hint="a smaller train.batch, train.accumulate above 1, a smaller denoiser, or runtime.precision: bf16 take less",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return ResourceError(
            f"{error.strerror}: {error.filename or 'a file of the run'}",
            hint="make room, then give the same command: it continues from the last checkpoint",
        )
    return error


def _say_finished(screen: Console, result: Run) -> None:
    screen.note(f"{result.path} is finished: {result.report}")
    screen.note("  more `train.steps` extend it; --fresh starts anew and renames this directory")


def _say_end(screen: Console, result: Run, lines: list[str], seconds: float) -> None:
    screen.note("")
    for line in lines:
        screen.note(f"  {line}")
    screen.note("")
    screen.note(f"done in {duration(seconds)}; everything is in {result.path}")
    commands = [
        (f"ldmkit sample {result.path} -n 4", "more pictures"),
        (f"ldmkit evaluate {result.path}", "the figures again"),
        (f"ldmkit export {result.path} --format diffusers --to DIR", "for other tools"),
    ]
    screen.table([("report", str(result.report)), ("samples", str(result.path / "samples"))])
    screen.note("next:")
    width = max(len(command) for command, _ in commands)
    for command, why in commands:
        screen.note(f"  {command:<{width}}  # {why}")
