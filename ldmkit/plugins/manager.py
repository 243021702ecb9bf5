"""Finds plugins and keeps what they register. The only file that touches pluggy's manager. Loads no torch.

pluggy's own loader lets one broken distribution stop all the others, drops the second of two entry points of one name
without a word, and lets `sys.exit` at import through; hence the loop here. Every plugin is loaded on its own: what it
registers is kept as a whole or not at all, and a plugin that cannot be used becomes a `Problem`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pluggy

from ldmkit.errors import PluginError, UsageError
from ldmkit.messages import did_you_mean
from ldmkit.plugins import hookspecs
from ldmkit.plugins.catalog import BUILTINS, KINDS, Catalog, Entry, Origin, Problem, last_line
from ldmkit.plugins.models import Models, model_registrar
from ldmkit.plugins.registration import registrar, rejection
from ldmkit.plugins.single_file import module_of

if TYPE_CHECKING:
    import click

GROUP = hookspecs.PROJECT
VARIABLE, NONE = "LDMKIT_PLUGINS", "LDMKIT_DISABLE_PLUGIN_AUTOLOAD"
_off: ContextVar[tuple[str, ...]] = ContextVar("plugins that are switched off", default=())

__all__ = ["Discovery", "Entry", "Origin", "Plugin", "Problem", "Registry", "load", "switched_off"]


@dataclass(frozen=True)
class Plugin:
    """One plugin that was loaded: where from, how long its import took, and the hooks it implements."""

    origin: Origin
    seconds: float
    hooks: tuple[str, ...]


@dataclass(frozen=True)
class Discovery:
    """How a registry was found: the arguments of `load`. What holds it can find the same plugins again; a copy in another
    process has no `extra`, which are objects of this one."""

    files: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    extra: tuple[object, ...] = ()

    def again(self) -> Registry:
        """The registry, found anew."""
        return load(files=self.files, only=self.only, extra=self.extra)

    def __reduce__(self) -> tuple[Any, ...]:
        return Discovery, (self.files, self.only)

    def __deepcopy__(self, memo: object) -> Discovery:
        return self


class Registry:
    """What every plugin registered, by kind, and the observers to call. Made by `load`.

    `run_started`, `step_logged` and `run_finished` raise PluginError, naming the plugin and the hook, where an observer
    fails.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []  # plugins that are broken
        self.left_out: list[Problem] = []  # plugins that somebody left out
        self.plugins: list[Plugin] = []
        # The registration hook's ending -> its catalog.
        self.catalogs: Mapping[str, Catalog] = {
            ending: Catalog(kind, self.problems, self.left_out) for ending, kind in KINDS.items()
        }
        self.models = Models()
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._origins: dict[int, Origin] = {}
        self.discovery = Discovery()

    @property
    def conditioners(self) -> Catalog:
        return self.catalogs["conditioners"]

    @property
    def denoisers(self) -> Catalog:
        return self.catalogs["denoisers"]

    @property
    def autoencoders(self) -> Catalog:
        return self.catalogs["autoencoders"]

    @property
    def losses(self) -> Catalog:
        return self.catalogs["losses"]

    @property
    def optimizers(self) -> Catalog:
        return self.catalogs["optimizers"]

    @property
    def schedules(self) -> Catalog:
        return self.catalogs["schedules"]

    @property
    def guidance(self) -> Catalog:
        return self.catalogs["guidance"]

    @property
    def data_sources(self) -> Catalog:
        return self.catalogs["data_sources"]

    @property
    def samplers(self) -> Catalog:
        return self.catalogs["samplers"]

    @property
    def metrics(self) -> Catalog:
        return self.catalogs["metrics"]

    def commands(self, group: click.Group) -> None:
        """Lets every plugin add its commands to `group`; one that fails, or takes a name that is there, becomes a `Problem`."""
        for implementation in self._manager.hook.ldmkit_register_commands.get_hookimpls():
            before = dict(group.commands)
            origin = self._origins[id(implementation.plugin)]
            try:
                implementation.function(*([group] * len(implementation.argnames)))
            except Exception as error:
                group.commands = before
                self.problems.append(Problem(origin, f"its commands fail: {last_line(error)}", "Fix or uninstall it"))
                continue
            if taken := [name for name, command in before.items() if group.commands.get(name) is not command]:
                group.commands = before
                cause = f"it registers the command '{taken[0]}', which is there already"
                self.problems.append(Problem(origin, cause, "Rename the command, or uninstall the plugin"))

    def add(self, plugin: object, origin: Origin, *, seconds: float = 0.0) -> None:
        """Register a module or object with `@hookimpl` functions, whole or not at all. Raises PluginError."""
        name = f"{origin}/{origin.entry_point}/{id(plugin)}"
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
            found, models = self._registrations(plugin, origin)
        except BaseException as error:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            raise rejection(error, origin) from error
        self._origins[id(plugin)] = origin
        for catalog, entry in found:
            catalog.add(entry)
        for model in models:
            self.models.add(model)
        hooks = tuple(caller.name for caller in self._manager.get_hookcallers(plugin) or [])
        self.plugins.append(Plugin(origin, seconds, hooks))

    def run_started(self, run: hookspecs.RunFacts) -> None:
        self._notify("ldmkit_run_started", f"at the start of {run.path}", run=run)

    def step_logged(self, run: hookspecs.RunFacts, step: int, metrics: Mapping[str, float]) -> None:
        self._notify(
            "ldmkit_step_logged", f"at step {step}", run=run, step=step, metrics=MappingProxyType(dict(metrics))
        )

    def run_finished(self, run: hookspecs.RunFacts, error: BaseException | None = None) -> None:
        self._notify("ldmkit_run_finished", f"at the end of {run.path}", run=run, error=error)

    def _notify(self, hook: str, when: str, **facts: object) -> None:
        """Call every implementation by itself, so that the one that raises can be named."""
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            try:
                implementation.function(*(facts[name] for name in implementation.argnames))
            except Exception as error:
                origin = self._origins[id(implementation.plugin)]
                raise PluginError(
                    f"plugin {origin} failed in {hook} {when}: {last_line(error)}",
                    hint=f"Run without it: --no-plugin {origin.entry_point or origin}; {VARIABLE} lists the plugins to load",
                ) from error

    def _registrations(self, plugin: object, origin: Origin) -> tuple[list[tuple[Catalog, Entry]], list[Entry]]:
        """What one plugin registers: components with their catalogs, and models."""
        found: list[tuple[Catalog, Entry]] = []
        models: list[Entry] = []
        callers = {caller.name: caller for caller in self._manager.get_hookcallers(plugin) or []}
        if not callers:
            raise PluginError("it implements no hook: is `@hookimpl` missing above its functions?")
        registers = {ending: registrar(catalog, origin, found) for ending, catalog in self.catalogs.items()}
        for ending, register in {**registers, "models": model_registrar(origin, models)}.items():
            caller = callers.get(f"ldmkit_register_{ending}")
            for implementation in caller.get_hookimpls() if caller else []:
                if implementation.plugin is plugin:
                    implementation.function(*([register] * len(implementation.argnames)))
        return found, models


@contextmanager
def switched_off(names: Sequence[str]) -> Iterator[None]:
    """Inside, `load` leaves out the installed plugins (entry points or distributions) of these names."""
    token = _off.set((*_off.get(), *names))
    try:
        yield
    finally:
        _off.reset(token)


def load(
    *, files: Sequence[str | Path] = (), only: Sequence[str] | None = None, extra: Sequence[object] = ()
) -> Registry:
    """Discover plugins: the built-ins, the entry points of group `ldmkit`, `files` (`-p`), and `extra` modules or objects.

    `only` lists the entry points or distributions to load; None reads the variable LDMKIT_PLUGINS (unset: all of them, or none
    where LDMKIT_DISABLE_PLUGIN_AUTOLOAD is set; empty: none). What `switched_off` names is left out. A broken installed plugin
    becomes a `Problem`.

    Raises:
        PluginError: a broken file, or a name in `only` under which nothing is installed: somebody asked for exactly it.
        UsageError: one of `files` is not there.
    """
    from ldmkit.plugins import defaults

    registry = Registry()
    paths = tuple(str(Path(file).expanduser().absolute()) for file in files)
    registry.discovery = Discovery(paths, None if only is None else tuple(only), tuple(extra))
    registry.add(defaults, Origin("ldmkit", metadata.version("ldmkit"), BUILTINS))
    for point in _chosen(registry, only):
        origin = _origin(point)
        try:
            _require_compatible(point)
            plugin, seconds = _timed(point.load, origin)
            registry.add(plugin, origin, seconds=seconds)
        except PluginError as error:
            registry.problems.append(Problem(origin, error.message, error.hint or ""))
    for path in paths:
        if not Path(path).is_file():
            raise UsageError(f"there is no plugin file {path}")
        origin = Origin(file=path)
        module, seconds = _timed(partial(module_of, path), origin)
        registry.add(module, origin, seconds=seconds)
    for plugin in extra:
        registry.add(plugin, Origin(entry_point=getattr(plugin, "__name__", type(plugin).__name__)))
    return registry


def _chosen(registry: Registry, only: Sequence[str] | None) -> list[metadata.EntryPoint]:
    """The entry points to load, sorted, so that the order of directories decides nothing."""
    points = sorted(metadata.entry_points(group=GROUP), key=lambda point: (point.name, str(_origin(point))))
    only, why = _asked(only)
    for name in (*(only or ()), *_off.get()):
        _require_installed(name, points)
    wanted: list[metadata.EntryPoint] = []
    for point in points:
        names = {point.name, _origin(point).distribution}
        if names & set(_off.get()):
            registry.left_out.append(Problem(_origin(point), "it is switched off", "Leave out --no-plugin"))
        elif only is not None and not names & set(only):
            registry.left_out.append(
                Problem(_origin(point), f"it is left out by {why}", f"Unset that, or name {point.name} in {VARIABLE}")
            )
        else:
            wanted.append(point)
    return wanted


def _asked(only: Sequence[str] | None) -> tuple[Sequence[str] | None, str]:
    """The plugins to load, None = all, and who says so."""
    if only is not None:
        return only, "`only`"
    if (listed := os.environ.get(VARIABLE)) is not None:
        return [name.strip() for name in listed.split(",") if name.strip()], VARIABLE
    if os.environ.get(NONE, "0") not in ("", "0"):
        return (), NONE
    return None, ""


def _require_installed(name: str, points: Sequence[metadata.EntryPoint]) -> None:
    known = sorted({known for point in points for known in (point.name, _origin(point).distribution or "")})
    if name not in known:
        guess = did_you_mean(name, known)
        raise PluginError(f"no plugin '{name}' is installed{guess}", hint=f"Installed: {', '.join(known)}")


def _origin(point: metadata.EntryPoint) -> Origin:
    distribution = point.dist
    if distribution is None:
        return Origin(entry_point=point.name)
    return Origin(distribution.name, distribution.version, point.name)


def _require_compatible(point: metadata.EntryPoint) -> None:
    """A plugin says itself which ldmkit it fits, in the requirements of its distribution."""
    from packaging.requirements import InvalidRequirement, Requirement

    ours = metadata.version("ldmkit")
    for line in (point.dist.requires if point.dist else None) or []:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if requirement.name == "ldmkit" and applies and not requirement.specifier.contains(ours, prereleases=True):
            raise PluginError(
                f"it needs ldmkit{requirement.specifier}, and this is ldmkit {ours}",
                hint=f"pip install --upgrade ldmkit {point.dist.name if point.dist else ''}".rstrip(),
            )


def _timed(load_module: Callable[[], Any], origin: Origin) -> tuple[Any, float]:
    start = time.perf_counter()
    try:
        # What a plugin prints is no part of what a command prints.
        with _signal_handlers_kept(), redirect_stdout(sys.stderr):
            module = load_module()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"plugin {origin} cannot be imported: {last_line(error)}" if origin.file else last_line(error),
            hint="Mend or uninstall it; the other plugins work",
        ) from error
    return module, time.perf_counter() - start


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """A plugin that installs signal handlers at import would swallow Ctrl-C; only the main thread can set them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watched = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in watched}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler and handler is not None:
                signal.signal(number, handler)
