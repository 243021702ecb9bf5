"""Whose is a foreign conditioning stage? Every registered conditioner is asked; the core knows none by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from ldmkit import plugins
from ldmkit.conditioning import Conditioner, ForeignStage
from ldmkit.errors import PluginError
from ldmkit.interop import given
from ldmkit.latent_diffusion import Slot
from ldmkit.options import derived
from ldmkit.plugins import Registry
from ldmkit.registry import Entry, Origin


@dataclass(frozen=True)
class Found:
    """A conditioner for a foreign stage: its slot's name, where it came from, its weights; and what a person should know."""

    name: str
    slot: Slot
    conditioner: Conditioner
    notes: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def registry_of(registry: Registry | None) -> Registry:
    """The given registry, or everything installed; with the stand-in for modalities that nobody registered."""
    registry = registry or plugins.load()
    if given.NAME not in registry.conditioners:
        entry = Entry(given.NAME, given.GivenConditioner, Origin(entry_point="ldmkit"))
        registry.conditioners.add(entry)
    return registry


def find(stage: ForeignStage, registry: Registry) -> Found | None:
    """The first registered conditioner, by name, that says the stage is its own; None where nobody does.

    Raises:
        PluginError: a conditioner that answers with something that cannot be made again from options.
    """
    notes = []
    for name in registry.conditioners.names():
        try:
            kind = registry.conditioners.load(name)
        except PluginError as error:
            notes.append(f"the conditioner {name} could not be asked: {error.message}")
            continue
        claimed = _claim(kind, stage)
        if claimed is not None:
            conditioner, options = claimed
            slot = Slot(name, _plain(name, kind, options, registry), {}, _origin(name, registry))
            tensors = conditioner.state_dict()
            return Found(name.replace("-", "_"), slot, conditioner.eval(), tuple(notes), tensors)
    return None


def stand_in(stage: ForeignStage, *, tokens: int = 0, length: int = 0, registry: Registry) -> Found:
    """The condition as tensors that somebody else encodes: the core works, and what is missing is said."""
    options = {"tokens": tokens, "length": length if tokens else 0, "vector": 0, "concat": stage.channels}
    conditioner = given.GivenConditioner(**options)
    slot = Slot(given.NAME, options, {"value": stage.key}, _origin(given.NAME, registry))
    takes = " and ".join(
        text
        for text in (
            f"tokens (up to {length}, {tokens})" if tokens else "",
            f"concat ({stage.channels}, h, w)" if stage.channels else "",
        )
        if text
    )
    note = (
        f"no installed plugin reads the conditioning stage {stage.target} ({stage.key}): autoencoder, UNet and schedule are "
        f"here, and the slot takes what that stage would give, {takes}; install a plugin for it and import again"
    )
    return Found(slot_name(stage.key), slot, conditioner.eval(), (note,))


def slot_name(key: str) -> str:
    """A foreign field's name as a slot's."""
    name = re.sub(r"[^a-z0-9]+", "_", key.lower()).strip("_")
    name = name if name[:1].isalpha() else f"condition_{name}".rstrip("_")
    return f"{name}_" if name in ("null", "none", "all", "training") else name


def _claim(kind: type[Conditioner], stage: ForeignStage) -> tuple[Conditioner, dict[str, Any]] | None:
    """The conditioner that `kind` makes of the stage, and the options it made it with.

    `from_foreign` is called on a subclass whose constructor writes its arguments down.
    """
    recorded: list[dict[str, Any]] = []

    def remember(self: Conditioner, **options: Any) -> None:
        recorded.append(options)
        kind.__init__(self, **options)

    recording: Any = type(kind.__name__, (kind,), {"__init__": remember, "__module__": kind.__module__})
    found = recording.from_foreign(stage)
    if found is None:
        return None
    if type(found) is not recording:
        raise PluginError(
            f"{kind.__module__}.{kind.__name__}.from_foreign answers with a {type(found).__name__} it did not make by `cls(...)`",
            hint="from_foreign is a classmethod and makes its result with cls(**options)",
        )
    found.__class__ = kind
    skipped = derived(kind)
    return found, {name: value for name, value in recorded[-1].items() if name not in skipped}


def _plain(name: str, kind: type[Conditioner], options: dict[str, Any], registry: Registry) -> dict[str, Any]:
    try:
        return registry.conditioners.options(name).read(json.loads(json.dumps(options))).plain()
    except (ValidationError, TypeError, ValueError) as error:
        raise PluginError(
            f"{kind.__name__}.from_foreign makes a conditioner with options that no file can hold: {error}"
        ) from error


def _origin(name: str, registry: Registry) -> dict[str, Any]:
    origin = registry.conditioners.entry(name).origin
    return {key: value for key, value in vars(origin).items() if value is not None}
