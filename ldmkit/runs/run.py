"""`run`: one recipe from data to report, in one directory; the same call again continues. Loads torch when there is work."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmkit import plugins
from ldmkit.errors import LdmkitError, ResourceError
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.recipe import load as load_recipe
from ldmkit.runs.directory import Difference, RunDirectory, longer_first_stage, now, read_status, versions
from ldmkit.training.logging.console import Console, duration
from ldmkit.training.parallel.launch import launched
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.stop import Interrupted, Stop

if TYPE_CHECKING:
    from ldmkit.evaluation import Results
    from ldmkit.latent_diffusion import LatentDiffusion

MEMORY = (
    "what takes less, first things first: train.accumulate: 2 or more (same numbers, half of the activations), "
    "runtime.checkpointing: true, runtime.precision: bf16 on a GPU, runtime.cache left at auto (no encoder in stage two), "
    "train.optimizer: adamw-8bit on a GPU, a smaller train.batch, a smaller denoiser; the same command continues"
)
REPEATED = 10.0  # seconds in which a signal to one of several processes is the same signal, handed on
FINISHED = ("model/config.json", "evaluation.json", "report.html")


@dataclass(frozen=True)
class Run:
    """A run's directory, and what is in it."""

    path: Path
    recipe: Recipe
    registry: Registry | None = field(default=None, repr=False, compare=False)  # the plugins it ran with

    @property
    def status(self) -> dict[str, Any]:
        """``status.json``: state, stage, step, what ended it."""
        return read_status(self.path)

    @cached_property
    def model(self) -> LatentDiffusion:
        """The trained model, with its average weights; of a run that has not come to its end, that of its newest checkpoint.

        Raises:
            CheckpointError: there is none yet.
        """
        from ldmkit.runs.loading import load

        return load(self.path, registry=self.registry)

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

    def _repr_html_(self) -> str:
        """State, figures, curve and newest images, for a notebook."""
        from ldmkit.runs.notebook import page

        return page(self.path, self.status)


def run(
    recipe: Recipe | str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    fresh: bool = False,
    accept_new_data: bool = False,
    registry: Registry | None = None,
    console: Console | bool = True,
) -> Run:
    """Trains, samples, evaluates and reports what a recipe says; continues what was begun, and says so where all is done.

    Args:
        recipe: a recipe, a file, the name of a bundled one, or a mapping of its keys.
        out: the run's directory; default: ``runs/NAME``.
        fresh: start anew; a run that is there is renamed, nothing is deleted.
        accept_new_data: go on with data that changed since the run began; their order is another one.
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
    asked = _whole(asked.validate_components(registry), registry)
    path = Path(out).expanduser() if out is not None else Path("runs") / asked.name
    result = Run(path, asked, registry)
    with launched() as ranks, ExitStack() as stack, Stop(grace=REPEATED if ranks.count > 1 else 0.0) as stop:
        if not ranks.first:
            screen = Console(enabled=False)
        directory = RunDirectory(path, fresh=fresh, holder=ranks.first)
        ranks.decide(lambda: bool(stack.enter_context(directory)))
        changed, finished = ranks.decide(lambda: _compared(directory, asked, ranks, registry))
        if directory.moved is not None:
            screen.note(f"the old run is now {directory.moved}")
        if finished:
            _say_finished(screen, result, changed)
            return result
        for difference in changed:
            screen.note(f"  changed: {difference}")
        _begin(directory, registry)
        _Work(result, directory, registry, screen, stop, ranks, accept_new_data).do()
    return result


def _compared(
    directory: RunDirectory, recipe: Recipe, ranks: Ranks, registry: Registry
) -> tuple[list[Difference], bool]:
    """What changed since the run began, and whether it is finished."""
    for section in ("train", "autoencoder.train"):
        settings = recipe.train if section == "train" else recipe.autoencoder.train
        if settings is not None and (left := settings.batch % ranks.count):
            fits = [size for size in (settings.batch - left, settings.batch - left + ranks.count) if size]
            raise recipe.error(
                f"a batch of {settings.batch} cannot be shared by {ranks.count} processes equally",
                *section.split("."),
                "batch",
                hint=f"`batch` is that of all processes together; {' or '.join(map(str, fits))} can be shared",
            )
    changed = directory.check(recipe.resolved(), registry)
    finished = _finished(directory, recipe, changed)
    longer = next((d for d in changed if d.key == "autoencoder.train.steps" and d.now > (d.was or 0)), None)
    if finished and longer is not None:
        raise longer_first_stage(longer.now, longer.was)
    return changed, finished


def _whole(recipe: Recipe, registry: Registry) -> Recipe:
    """With what the recipe leaves to a trained model that it starts from."""
    if recipe.init is None and recipe.autoencoder.from_ is None:
        return recipe
    from ldmkit.assembly import inherited

    return inherited(recipe, registry)


def _finished(directory: RunDirectory, recipe: Recipe, changed: list[Difference]) -> bool:
    """Whether there is nothing to do: as many steps as asked for are done, and nothing changed that shows in the result."""
    status = directory.status()
    if status.get("state") != "finished" or any(not (directory.path / name).is_file() for name in FINISHED):
        return False
    if any(difference.key.split(".")[0] in ("sample", "evaluate") for difference in changed):
        return False
    return int(status.get("done", 0)) >= steps_of(recipe)


def steps_of(recipe: Recipe) -> int:
    """Of the last stage that is trained."""
    own = recipe.autoencoder.train
    return recipe.train.steps if not recipe.alone else 0 if own is None else own.steps


def _begin(directory: RunDirectory, registry: Registry) -> None:
    if not directory.holder:
        return
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
        plugin_files=[plugin.origin.file for plugin in registry.plugins if plugin.origin.file],
    )


@dataclass(frozen=True)
class _Work:
    """What one process does of a run, and what it does it with."""

    result: Run
    directory: RunDirectory
    registry: Registry
    screen: Console
    stop: Stop
    ranks: Ranks
    accept_new_data: bool

    def do(self) -> None:
        """The stages, with the observers told (on the first rank) and the status kept whatever happens."""
        result, screen = self.result, self.screen
        screen.note(f"{result.recipe.name} in {result.path}")
        try:
            if self.ranks.first:
                self.registry.run_started(result)
            seconds, lines = self._stages()
        except BaseException as error:
            failure = _translated(self.ranks.explained(error))
            self._failed(failure)
            if failure is error:
                raise
            raise failure from error
        if not self.ranks.first:
            return
        done = steps_of(result.recipe)
        self.directory.write_status("finished", stage=None, exit_code=0, done=done, seconds=seconds)
        try:
            _report(result.path)
        except OSError as error:  # all that matters is on the disk
            screen.note(
                f"warning: could not write the report ({error}); `ldmkit report {shlex.quote(str(result.path))}` does"
            )
        self.registry.run_finished(result, None)
        _say_end(screen, result, lines, seconds)

    def _failed(self, failure: BaseException) -> None:
        code = failure.exit_code if isinstance(failure, LdmkitError | Interrupted) else 1
        self.directory.failed(failure, code)
        if isinstance(failure, Interrupted):  # said once: by whoever shows the error
            failure.continues, failure.elsewhere = True, not self.ranks.first
        if self.ranks.first:
            self.registry.run_finished(self.result, failure)

    def _stages(self) -> tuple[float, list[str]]:
        """Their seconds, and the lines of the evaluation."""
        from ldmkit.runs.stages import Stages  # torch, and all that comes with it

        def observer(stage: str, step: int, values: Mapping[str, float]) -> None:
            self.directory.write_status("running", stage=stage, step=step)
            self.registry.step_logged(self.result, step, values)

        stages = Stages(
            self.result.recipe,
            self.registry,
            self.directory,
            self.screen,
            self.stop,
            observer=observer if self.ranks.first else None,
            facts={"versions": versions()},
            ranks=self.ranks,
            accept_new_data=self.accept_new_data,
        )
        results = stages.execute()
        return stages.seconds, results.lines()


def _report(path: Path) -> None:
    """The page, and the card beside the model. After the status, which the page shows."""
    from ldmkit.evaluation import write_report
    from ldmkit.interop.model_card import write_card

    write_report(path)
    write_card(path / "model", name=path.resolve().name, run=path)


def _translated(error: BaseException) -> BaseException:
    """Memory and disks that are full say so in many ways."""
    text = str(error)
    memory = isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text
    if memory and not isinstance(error, LdmkitError):
        return ResourceError(
            f"out of memory: {text.splitlines()[0] if text else type(error).__name__}",
            hint=MEMORY,
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return ResourceError(
            f"torch.compile failed: {text.splitlines()[0] if text else type(error).__name__}",
            hint="`runtime.compile: false` trains without; --debug shows what the compiler said",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return ResourceError(
            f"{error.strerror}: {error.filename or 'a file of the run'}",
            hint="make room, then give the same command: it continues from the last checkpoint",
        )
    return error


def _say_finished(screen: Console, result: Run, changed: list[Difference]) -> None:
    screen.note(f"{result.path} is finished: {result.report}")
    for difference in changed:
        screen.note(f"  without effect, as nothing is left to train: {difference}")
    screen.note("  more `train.steps` extend it; --fresh starts anew and renames this directory")


def _say_end(screen: Console, result: Run, lines: list[str], seconds: float) -> None:
    from ldmkit.evaluation import conclusion
    from ldmkit.evaluation.next_commands import next_commands

    screen.note("")
    for text in lines:
        screen.note(f"  {text}")
    if said := conclusion(result.results):
        screen.note(f"  {said}")
    screen.note("")
    screen.note(f"done in {duration(seconds)}; everything is in {result.path}")
    screen.table([("report", str(result.report)), ("samples", str(result.path / "samples"))])
    screen.note("next:")
    commands = next_commands(str(result.path), result.recipe.resolved(), result.results)
    width = max(len(line.command) for line in commands)
    for line in commands:
        screen.note(f"  {line.command:<{width}}  # {line.why}")
