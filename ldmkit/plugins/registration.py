"""What a plugin may register, and what to say of one whose hooks are wrong. Loads no torch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pluggy

from ldmkit.errors import PluginError
from ldmkit.messages import did_you_mean
from ldmkit.plugins import hookspecs
from ldmkit.plugins.catalog import NAME, TARGET, Catalog, Entry, Origin, last_line


def registrar(catalog: Catalog, origin: Origin, found: list[tuple[Catalog, Entry]]) -> hookspecs.Register:
    """The `register` function one plugin gets for one kind.

    Raises PluginError for a name or a target that cannot be one.
    """

    def register(name: str, target: object) -> None:
        noun = catalog.kind.noun
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise PluginError(f"it registers the {noun} {name!r}: names are lower-case words joined by '-'")
        if isinstance(target, str) and not TARGET.fullmatch(target):
            raise PluginError(f"it registers the {noun} '{name}' as {target!r}: write 'package.module:Name'")
        if not isinstance(target, str) and not callable(target):
            raise PluginError(f"it registers the {noun} '{name}' as {target!r}: give 'package.module:Name' or a class")
        if any(other is catalog and entry.name == name for other, entry in found):
            raise PluginError(f"it registers the {noun} '{name}' twice")
        found.append((catalog, Entry(name, target, origin)))

    return register


def rejection(error: BaseException, origin: Origin) -> BaseException:
    """What to raise for a plugin whose hooks are wrong: a PluginError naming it, or `error` if an interruption."""
    if isinstance(error, pluggy.PluginValidationError):
        return _explained(error, origin)
    if isinstance(error, PluginError):
        return PluginError(_named(error.message, origin), hint=error.hint)
    if isinstance(error, (Exception, SystemExit)):
        return PluginError(_named(f"its registration fails: {last_line(error)}", origin))
    return error


def _explained(error: pluggy.PluginValidationError, origin: Origin) -> PluginError:
    hooks = {name: value for name, value in vars(hookspecs).items() if name.startswith(f"{hookspecs.PROJECT}_")}
    text = str(error)
    implemented = [name for name in dir(error.plugin) if name.startswith(f"{hookspecs.PROJECT}_")]
    for name in implemented:
        if name not in hooks and "unknown hook" in text:
            guess = did_you_mean(name, hooks)
            return PluginError(_named(f"there is no hook '{name}'{guess}", origin), hint=f"Hooks: {', '.join(hooks)}")
    for name in implemented:
        if name in hooks and f"hook {name!r}" in text:
            allowed = hooks[name].__code__.co_varnames[: hooks[name].__code__.co_argcount]
            unknown = [given for given in _arguments(getattr(error.plugin, name)) if given not in allowed]
            return PluginError(
                _named(f"hook {name}: argument {', '.join(unknown)} unknown; allowed: {', '.join(allowed)}", origin)
            )
    return PluginError(_named(" ".join(text.split()), origin))


def _arguments(function: Any) -> Sequence[str]:
    return list(inspect.signature(function).parameters)


def _named(message: str, origin: Origin) -> str:
    """A file's or an object's error stands alone, so it says whose it is; a `Problem` has its origin beside it."""
    return message if origin.distribution else f"plugin {origin}: {message}"
