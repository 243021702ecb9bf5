"""What conditioners learn from the data before training: class lists, vocabularies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ldmkit import plugins
from ldmkit.assembly.fields import check_fields
from ldmkit.assembly.inheritance import inherited
from ldmkit.assembly.sources import source_of
from ldmkit.conditioning import Conditioner, fitted
from ldmkit.conditioning.checks import called
from ldmkit.data import Source
from ldmkit.errors import PluginError
from ldmkit.fields import Field, Fields
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe

FIT_SAMPLES = 4096  # of an endless source


def fit(recipe: Recipe, registry: Registry | None = None, *, source: Source | None = None) -> Recipe:
    """The recipe with what its conditioners learn from the training data (class lists, vocabularies) written into their slots.

    What the data source knows of the fields a slot reads goes there too (`known`), so that what a person gives when sampling is
    read as the training data were. A value that the recipe gives wins, and so does one of the trained model that `init` names.
    An endless source is read for its first samples.

    Args:
        source: the recipe's data source, where it was made before.
    """
    registry = registry or plugins.load()
    recipe = inherited(recipe.validate_components(registry), registry)
    check_fields(recipe, registry)
    if not recipe.conditioners:
        return recipe
    train = (source or source_of(recipe, registry)).split("train")
    info = train.info()
    changes: dict[str, Any] = {}
    for name, slot in recipe.conditioners.items():
        kind = registry.conditioners.load(slot.type)
        if slot.known is None:
            known = {
                own: info.fields[slot.fields_.get(own, own)] for own in _described(kind, slot.fields_, info.fields)
            }
            changes[f"conditioners.{name}.known"] = {own: field.to_json() for own, field in known.items()}
        else:
            known = {own: Field.read(described) for own, described in slot.known.items()}
        if kind.fit.__func__ is Conditioner.fit.__func__:  # type: ignore[attr-defined]  # learns nothing
            continue
        given = _given(recipe, name)
        learned = _learned(name, slot.type, registry, given, _samples(train, slot.fields_), known)
        for key, value in learned.items():
            if key not in given:
                changes[f"conditioners.{name}.{key}"] = value
    return recipe.updated(changes) if changes else recipe


def _described(kind: type[Conditioner], fields: Mapping[str, str], info: Fields) -> list[str]:
    """The conditioner's fields that the source says something of."""
    return [own for own in kind.reads if fields.get(own, own) in info]


def learned_options(asked: Recipe, fitted: Recipe) -> dict[str, dict[str, Any]]:
    """Slot -> the options that `fit` added to what the recipe asked for. Both recipes have their components validated."""
    return {
        name: {
            key: value
            for key, value in slot.options.items()
            if key not in asked.conditioners[name].options or asked.conditioners[name].options[key] != value
        }
        for name, slot in fitted.conditioners.items()
    }


def _learned(
    slot: str,
    type_: str,
    registry: Registry,
    given: Mapping[str, Any],
    samples: Iterator[Mapping[str, Any]],
    fields: Fields,
) -> dict[str, Any]:
    """What the slot's `fit` returned, if it is a mapping of options to JSON values."""
    kind = registry.conditioners.load(type_)
    who = f"the conditioner of slot {slot} ({kind.__name__}, {registry.conditioners.entry(type_).origin})"
    learned = called(who, "fit", lambda: fitted(kind, given, samples, fields))
    known = registry.conditioners.options_of(kind).names()
    if not isinstance(learned, Mapping) or not set(learned) <= set(known):
        got = ", ".join(map(str, learned)) if isinstance(learned, Mapping) else type(learned).__name__
        raise PluginError(
            f"{who} learned {got}; `fit` returns a mapping of options: {', '.join(known) or 'there are none'}"
        )
    try:
        json.dumps(dict(learned))
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"{who} learned what no file can hold: {error}", hint="return numbers, text, lists and mappings from `fit`"
        ) from error
    return dict(learned)


def _given(recipe: Recipe, slot: str) -> dict[str, Any]:
    """The options that were written down: neither null nor a default that `validate_components` filled in is one."""
    written = recipe.document.value.get("conditioners", {}).get(slot) or {}
    options = recipe.conditioners[slot].options
    return {key: value for key, value in options.items() if value is not None and written.get(key) is not None}


def _samples(source: Source, fields: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """The source's samples as a conditioner sees them: its own field names, nothing decoded that is not read."""
    count = source.info().count
    for index in range(FIT_SAMPLES if count is None else count):
        yield _Renamed(source[index], fields)


class _Renamed(Mapping[str, Any]):
    """A sample under other field names; fields load on access, as in the sample itself."""

    def __init__(self, sample: Mapping[str, Any], fields: Mapping[str, str]) -> None:
        self._sample, self._fields = sample, fields

    def __getitem__(self, name: str) -> Any:
        return self._sample[self._fields.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return iter({*self._sample, *self._fields})

    def __len__(self) -> int:
        return len({*self._sample, *self._fields})
