"""Finds plugins and keeps what they register. The only file that touches pluggy's manager. Loads no torch.

pluggy's own loader lets one broken distribution stop all the others, drops the second of two entry points of one name
without a word, and lets `sys.exit` at import through; hence the loop here. Every plugin is loaded on its own: what it
registers is kept as a whole or not at all, and a plugin that cannot be used becomes a `Problem`.
"""

from __future__ import annotations

import difflib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pluggy

from ldmkit.errors import PluginError, UsageError
from ldmkit.plugins import hookspecs
from ldmkit.plugins.catalog import CONDITIONER, DATA_SOURCE, METRIC, SAMPLER, Catalog, Entry, Origin, Problem, last_line
from ldmkit.plugins.registration import registrar, rejection
from ldmkit.plugins.single_file import module_of

GROUP = hookspecs.PROJECT
VARIABLE, NONE = "LDMKIT_PLUGINS", "LDMKIT_DISABLE_PLUGIN_AUTOLOAD"
_off: ContextVar[tuple[str, ...]] = ContextVar("plugins that are switched off", default=())

__all__ = ["Entry", "Origin", "Plugin", "Problem", "Registry", "load", "switched_off"]


@dataclass(frozen=True)
class Plugin:
    """One plugin that was loaded: where from, how long its import took, and the hooks it implements."""

    origin: Origin
    seconds: float
    hooks: tuple[str, ...]


class Registry:
    """What every plugin registered, by kind, and the observers to call. Made by `load`."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []  # plugins that are broken
        self.left_out: list[Problem] = []  # plugins that somebody left out
        self.plugins: list[Plugin] = []
        self.conditioners = Catalog(CONDITIONER, self.problems, self.left_out)
        self.data_sources = Catalog(DATA_SOURCE, self.problems, self.left_out)
        self.samplers = Catalog(SAMPLER, self.problems, self.left_out)
        self.metrics = Catalog(METRIC, self.problems, self.left_out)
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._origins: dict[int, Origin] = {}

    @property
    def catalogs(self) -> Mapping[str, Catalog]:
        """The registration hook's ending -> its catalog."""
        return {
            "conditioners": self.conditioners,
            "data_sources": self.data_sources,
            "samplers": self.samplers,
            "metrics": self.metrics,
        }

    def add(self, plugin: object, origin: Origin, *, seconds: float = 0.0) -> None:
        """Register a module or object with `@hookimpl` functions, whole or not at all. Raises PluginError."""
        name = f"{origin}/{origin.entry_point}/{id(plugin)}"
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
            found = self._registrations(plugin, origin)
        except BaseException as error:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            raise rejection(error, origin) from error
        self._origins[id(plugin)] = origin
        for catalog, entry in found:
            catalog.add(entry)
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

    def _registrations(self, plugin: object, origin: Origin) -> list[tuple[Catalog, Entry]]:
        found: list[tuple[Catalog, Entry]] = []
        callers = {caller.name: caller for caller in self._manager.get_hookcallers(plugin) or []}
        if not callers:
            raise PluginError("it implements no hook: is `@hookimpl` missing above its functions?")
        for ending, catalog in self.catalogs.items():
            caller = callers.get(f"ldmkit_register_{ending}")
            for implementation in caller.get_hookimpls() if caller else []:
                if implementation.plugin is plugin:
                    implementation.function(*([registrar(catalog, origin, found)] * len(implementation.argnames)))
        return found


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
    becomes a `Problem`; a broken file, or a name that nothing answers to, raises PluginError, because somebody asked for
    exactly it.
    """
    from ldmkit.plugins import defaults

    registry = Registry()
    registry.add(defaults, Origin("ldmkit", metadata.version("ldmkit"), "builtins"))
    for point in _chosen(registry, only):
        origin = _origin(point)
        try:
            _require_compatible(point)
            plugin, seconds = _timed(point.load, origin)
            registry.add(plugin, origin, seconds=seconds)
        except PluginError as error:
            registry.problems.append(Problem(origin, error.message, error.hint or ""))
    for file in files:
        path = str(Path(file).expanduser().absolute())
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
    points = wanted
    counts = Counter(point.name for point in points)
    for point in points:
        if counts[point.name] > 1:
            rivals = " and ".join(str(_origin(other)) for other in points if other.name == point.name)
            cause = f"the entry point '{point.name}' exists twice: in {rivals}"
            registry.problems.append(
                Problem(_origin(point), cause, f"Uninstall one, or set {VARIABLE} to the distribution to load")
            )
    return [point for point in points if counts[point.name] == 1]


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
        near = difflib.get_close_matches(name, known, n=1)
        did_you_mean = f"; did you mean '{near[0]}'?" if near else ""
        raise PluginError(f"no plugin '{name}' is installed{did_you_mean}", hint=f"Installed: {', '.join(known)}")


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
        with _signal_handlers_kept():
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
