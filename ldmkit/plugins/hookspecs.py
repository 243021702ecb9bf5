"""Every hook of ldmkit. A plugin is a torch-free module with functions of these names, marked `@hookimpl`.

    # ldmkit_depth/__init__.py, named in pyproject.toml:  [project.entry-points.ldmkit]  depth = "ldmkit_depth"
    from ldmkit import hookimpl

    @hookimpl
    def ldmkit_register_conditioners(register):
        register("depth", "ldmkit_depth.conditioner:Depth")

The `ldmkit_register_*` hooks are called once, when plugins are discovered. The others are observers: they get facts about
a run and change no number. A hook implementation may leave out arguments it does not use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import click

PROJECT = "ldmkit"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Register(Protocol):
    """`register(name, target)`: the name is `[a-z0-9-]+`, the target "package.module:Name", imported on first use, or a class.

    A model's target is its folder, an absolute path.
    """

    def __call__(self, name: str, target: object) -> None: ...


class RunFacts(Protocol):
    """What an observer may read of a run."""

    @property
    def path(self) -> Path: ...

    @property
    def recipe(self) -> Any: ...


@hookspec
def ldmkit_register_conditioners(register: Register) -> None:
    """Register conditioners: subclasses of `ldmkit.Conditioner`."""


@hookspec
def ldmkit_register_denoisers(register: Register) -> None:
    """Register denoisers: subclasses of `ldmkit.Denoiser`."""


@hookspec
def ldmkit_register_autoencoders(register: Register) -> None:
    """Register autoencoders: subclasses of `ldmkit.autoencoder.Autoencoder`."""


@hookspec
def ldmkit_register_losses(register: Register) -> None:
    """Register extra terms of a stage's loss: subclasses of `ldmkit.losses.AutoencoderTerm` or `DiffusionTerm`."""


@hookspec
def ldmkit_register_optimizers(register: Register) -> None:
    """Register optimizers: functions `(groups, *, <options>) -> torch.optim.Optimizer`."""


@hookspec
def ldmkit_register_schedules(register: Register) -> None:
    """Register noise schedules: functions or classes `(*, <options>) -> ldmkit.schedules.Schedule`."""


@hookspec
def ldmkit_register_guidance(register: Register) -> None:
    """Register methods of guidance: subclasses of `ldmkit.guidance.Method`."""


@hookspec
def ldmkit_register_data_sources(register: Register) -> None:
    """Register data sources: subclasses of `ldmkit.data.Source`."""


@hookspec
def ldmkit_register_samplers(register: Register) -> None:
    """Register samplers: functions `(denoiser, noise, schedule, steps, *, <options>, generators, callback) -> latents`."""


@hookspec
def ldmkit_register_metrics(register: Register) -> None:
    """Register metrics: what a recipe's `evaluate:` names."""


@hookspec
def ldmkit_register_models(register: Register) -> None:
    """Register trained models: `register(name, folder)`, a folder that `LatentDiffusion.save` wrote."""


@hookspec
def ldmkit_register_commands(group: click.Group) -> None:
    """Add commands to `ldmkit`'s own: `group.add_command(mine)`."""


@hookspec
def ldmkit_run_started(run: RunFacts) -> None:
    """A run is about to train: its directory exists, and nothing has been computed yet."""


@hookspec
def ldmkit_step_logged(run: RunFacts, step: int, metrics: Mapping[str, float]) -> None:
    """Numbers were written to `metrics.jsonl` at this optimizer step. `metrics` is read-only."""


@hookspec
def ldmkit_run_finished(run: RunFacts, error: BaseException | None) -> None:
    """A run has ended: `error` is None when it finished, else what stopped it."""
