"""The parts of a recipe that plugins own: their options, checked against the constructors. Imports the components."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ldmkit.errors import PluginError
from ldmkit.messages import KeyPath, Problem, problems_of
from ldmkit.plugins.catalog import Catalog
from ldmkit.recipe.base import Component
from ldmkit.recipe.checks import TYPE
from ldmkit.recipe.sections import Data, Metric, Sample, Slot

if TYPE_CHECKING:
    from ldmkit.plugins import Registry
    from ldmkit.plugins.options import Options
    from ldmkit.recipe.model import Recipe

Site = tuple[KeyPath, dict[str, Any], Catalog, type[Component]]


def problems(raw: dict[str, Any], registry: Registry) -> list[Problem]:
    """Everything wrong with the options of components in a recipe as written. What the core finds wrong is passed over."""
    found: list[Problem] = []
    for path, given, catalog, section in _sites(raw, registry):
        try:
            loaded = catalog.load(given["type"])
            options = catalog.options_of(loaded)
        except PluginError as error:
            found.append(_unusable(path, error))
            continue
        core = section.keys()
        own = {key: value for key, value in given.items() if key not in core}
        try:
            options.read(own)
        except ValidationError as error:
            allowed = (*options.names(), *section.keys())
            unlearned = _unlearned(error, loaded)
            found += [
                problem
                for problem in problems_of(error, own, _allowed(allowed), path)
                if problem.path[len(path) :] not in unlearned
            ]
    return found


def unknown(raw: dict[str, Any], registry: Registry) -> list[Problem]:
    """The names that nobody registered. Imports nothing."""
    found: list[Problem] = []
    for path, given, catalog, _ in _sites(raw, registry):
        try:
            catalog.entry(given["type"])
        except PluginError as error:
            found.append(_unusable(path, error))
    return found


def _unusable(path: KeyPath, error: PluginError) -> Problem:
    hint = f"\n  {error.hint}" if error.hint else ""
    return Problem((*path, "type"), error.message + hint, plugin=True)


def completed(recipe: Recipe, registry: Registry) -> Recipe:
    """A copy with every default of every component written out. `problems` must have found none."""
    copy = recipe.model_copy(deep=True)
    raw = {
        "data": copy.data,
        "conditioners": copy.conditioners,
        "sample": copy.sample,
        "evaluate": copy.evaluate,
    }
    for path, _, catalog, _ in _sites(recipe.resolved(redact=False), registry):
        section: Any = raw
        for step in path:
            section = section[step]
        loaded = catalog.load(section.type)
        section.__pydantic_extra__ = complete_options(catalog.options_of(loaded), section.options)
        if isinstance(section, Data):
            for key, value in getattr(loaded, "view_defaults", {}).items():
                if key not in section.model_fields_set:
                    setattr(section, key, value)
    return copy


def complete_options(options: type[Options], given: dict[str, Any]) -> dict[str, Any]:
    """`given` and the defaults, as JSON values; what `fit` has still to learn is left out."""
    try:
        return options.read(given).plain()
    except ValidationError:
        defaults = options.model_construct().plain()
        return {
            name: given.get(name, defaults.get(name)) for name in options.names() if name in given or name in defaults
        }


def learns(component: Any) -> bool:
    """Whether a conditioner has a `fit` of its own, which may supply options that the recipe leaves out."""
    return sum("fit" in vars(base) for base in getattr(component, "__mro__", ())) > 1


def _unlearned(error: ValidationError, loaded: Any) -> set[KeyPath]:
    if not learns(loaded):
        return set()
    return {item["loc"] for item in error.errors() if item["type"] == "missing" and len(item["loc"]) == 1}


def _allowed(names: tuple[str, ...]) -> Any:
    return lambda path: names if not path else ()


def _sites(raw: dict[str, Any], registry: Registry) -> Iterator[Site]:
    """Every component of a recipe whose `type` can be looked up."""
    candidates: list[tuple[KeyPath, Any, Catalog, type[Component]]] = [
        (("data",), raw.get("data"), registry.data_sources, Data)
    ]
    slots = raw.get("conditioners", {})
    for slot, given in slots.items() if isinstance(slots, dict) else ():
        candidates.append((("conditioners", slot), given, registry.conditioners, Slot))
    sample = raw.get("sample", {})
    if isinstance(sample, dict):
        candidates.append((("sample",), {"type": "ddim", **sample}, registry.samplers, Sample))
    metrics = raw.get("evaluate", [])
    for index, given in enumerate(metrics if isinstance(metrics, list) else ()):
        candidates.append((("evaluate", index), given, registry.metrics, Metric))
    for path, given, catalog, section in candidates:
        if isinstance(given, dict) and isinstance(given.get("type"), str) and TYPE.fullmatch(given["type"]):
            yield path, given, catalog, section
