"""Trained models that plugins ship, by name. Loads no torch."""

from __future__ import annotations

import os
from pathlib import Path

from ldmkit.errors import PluginError
from ldmkit.messages import nearest
from ldmkit.plugins.catalog import NAME, Entry, Origin
from ldmkit.plugins.hookspecs import Register


class Models:
    """The registered names -> the folders that `LatentDiffusion.save` wrote."""

    def __init__(self) -> None:
        self._entries: dict[str, list[Entry]] = {}

    def add(self, entry: Entry) -> None:
        self._entries.setdefault(entry.name, []).append(entry)

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries))

    def entries(self) -> tuple[Entry, ...]:
        """Everything registered, a name that two plugins claim twice."""
        return tuple(entry for name in self.names() for entry in self._entries[name])

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def nearest(self, name: str) -> str | None:
        """The name that somebody who wrote `name` may have meant."""
        return nearest(name, self.names())

    def folder(self, name: str) -> Path:
        """Where the model `name` is. Raises PluginError where two plugins claim the name, or nothing is there."""
        entries = self._entries[name]
        if len(entries) > 1:
            origins = " and ".join(str(entry.origin) for entry in entries)
            raise PluginError(
                f"the model '{name}' is registered twice: by {origins}",
                hint="Uninstall one, or choose plugins with LDMKIT_PLUGINS",
            )
        folder = Path(str(entries[0].target))
        if not (folder / "config.json").is_file():
            raise PluginError(
                f"the model '{name}' of {entries[0].origin} is not in {folder}", hint="Install the package again"
            )
        return folder


def model_registrar(origin: Origin, found: list[Entry]) -> Register:
    """The `register` function one plugin gets for models."""

    def register(name: str, target: object) -> None:
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise PluginError(f"it registers the model {name!r}: names are lower-case words joined by '-'")
        if not isinstance(target, str | os.PathLike) or not Path(target).is_absolute():
            raise PluginError(f"it registers the model '{name}' as {target!r}: give its folder, an absolute path")
        if any(entry.name == name for entry in found):
            raise PluginError(f"it registers the model '{name}' twice")
        found.append(Entry(name, str(target), origin))

    return register
