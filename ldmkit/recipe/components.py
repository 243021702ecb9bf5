"""What a recipe chooses by name: where, of which kind, and whether its options are those of what the name stands for.

The core's own components are known from `core_schema`, so that they are checked without torch; those of plugins are imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ValidationError

from ldmkit.errors import PluginError
from ldmkit.messages import KeyPath, Problem, did_you_mean, problems_of, shown
from ldmkit.plugins.catalog import Catalog
from ldmkit.recipe import sections
from ldmkit.recipe.base import Component
from ldmkit.recipe.core_schema import COMPONENTS
from ldmkit.recipe.training import Optimizer

if TYPE_CHECKING:
    from ldmkit.plugins import Registry

# A registered name, or `distribution:name` where two plugins claim one.
TYPE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*:)?[a-z0-9]+(-[a-z0-9]+)*")
TRAINED = ("autoencoders", "denoisers", "schedules", "distances", "weightings", "timestep_samplings")


class Choice(NamedTuple):
    """A place where a recipe names a component; `*` is any key or index. Without a catalog of its kind the core's are all."""

    path: tuple[str, ...]
    kind: str
    section: type[Component]


CHOICES = (
    Choice(("data",), "data_sources", sections.Data),
    Choice(("autoencoder",), "autoencoders", sections.Autoencoder),
    Choice(("autoencoder", "train", "optimizer"), "optimizers", Optimizer),
    Choice(("conditioners", "*"), "conditioners", sections.Slot),
    Choice(("denoiser",), "denoisers", sections.Denoiser),
    Choice(("diffusion", "schedule"), "schedules", sections.Schedule),
    Choice(("diffusion", "loss"), "distances", sections.Distance),
    Choice(("diffusion", "weighting"), "weightings", sections.Weighting),
    Choice(("diffusion", "timestep_sampling"), "timestep_samplings", sections.TimestepSampling),
    Choice(("losses", "*"), "losses", sections.ExtraLoss),
    Choice(("train", "optimizer"), "optimizers", Optimizer),
    Choice(("sample",), "samplers", sections.Sample),
    Choice(("sample", "guidance_options"), "guidance", sections.Guidance),
    Choice(("evaluate", "*"), "metrics", sections.Metric),
)


@dataclass(frozen=True)
class Site:
    """One component that a recipe names: where, and what is written there."""

    path: KeyPath
    given: dict[str, Any]
    choice: Choice

    @property
    def name(self) -> str:
        """What `type` says, or stands for where it is left out."""
        field = self.choice.section.model_fields["type"]
        return str(self.given.get("type", None if field.is_required() else field.default))

    @property
    def own(self) -> dict[str, Any]:
        """What is written that is no key of the core's."""
        core = self.choice.section.keys()
        return {key: value for key, value in self.given.items() if key not in core}

    def core_options(self) -> type[BaseModel] | None:
        """The options of a component of the core."""
        return COMPONENTS[self.choice.kind].get(self.name)

    def catalog(self, registry: Registry) -> Catalog | None:
        return registry.catalogs.get(self.choice.kind)


def sites(raw: Mapping[str, Any]) -> Iterator[Site]:
    """Every component that a recipe names with a name that can be one, those left out as their defaults."""
    for choice in CHOICES:
        for path, given in _found(choice.path, raw, ()):
            site = Site(path, given, choice)
            if isinstance(given.get("type", ""), str) and TYPE.fullmatch(site.name):
                yield site


def _found(path: tuple[str, ...], value: Any, at: KeyPath) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    if not path:
        if isinstance(value, dict):
            yield at, value
        return
    step, *rest = path
    if step != "*":
        # A section with defaults may be left out; one that trains a stage may not.
        missing: dict[str, Any] | None = None if step in ("train", "data", "autoencoder") else {}
        if isinstance(value, dict):
            yield from _found(tuple(rest), value.get(step, missing), (*at, step))
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _found(tuple(rest), inner, (*at, key))


def problems(raw: Mapping[str, Any], registry: Registry | None) -> list[Problem]:
    """Everything wrong with names and options of components. Without a registry, plugins' own are passed over."""
    return [problem for site in sites(raw) for problem in _problems(site, registry)]


def blocked(raw: Mapping[str, Any]) -> bool:
    """Whether the options of what is trained are wrong, so that nothing can be said about how they go together."""
    return any(_problems(site, None) for site in sites(raw) if site.choice.kind in (*TRAINED, "guidance"))


def _problems(site: Site, registry: Registry | None) -> list[Problem]:
    known = COMPONENTS[site.choice.kind]
    catalog = None if registry is None else site.catalog(registry)
    if catalog is None:
        model = site.core_options()
        if model is None and site.choice.kind not in _CLOSED:
            return []  # a plugin's, which nobody has asked for yet
        if model is None:
            text = f"must be one of {', '.join(known)}, got {shown(site.name)}{did_you_mean(site.name, known)}"
            return [Problem((*site.path, "type"), text)]
        return _wrong(site, model, set())
    try:
        if (model := site.core_options()) is not None and catalog.entry(site.name).origin.core:
            return _wrong(site, model, set())
        loaded = catalog.load(site.name)
        return _wrong(site, catalog.options_of(loaded), _unlearned(loaded))
    except PluginError as error:
        return [_unusable(site.path, error)]


_CLOSED = ("distances", "weightings", "timestep_samplings")


def _wrong(site: Site, model: type[BaseModel], unlearned: set[str]) -> list[Problem]:
    try:
        model.model_validate_json(json.dumps(site.own))
    except ValidationError as error:
        names = (*_names(model), *site.choice.section.keys())
        found = problems_of(error, site.own, lambda path: _allowed(model, path, names, site.own), site.path)
        missing = {
            (*site.path, str(item["loc"][0]))
            for item in error.errors()
            if item["type"] == "missing" and len(item["loc"]) == 1 and item["loc"][0] in unlearned
        }
        return [problem for problem in found if problem.path not in missing]
    return []


def _allowed(model: type[BaseModel], path: KeyPath, names: tuple[str, ...], given: Any) -> tuple[str, ...]:
    """The keys that the mapping at `path` inside the options may have."""
    if not path:
        return names
    field = next((field for name, field in model.model_fields.items() if (field.alias or name) == path[0]), None)
    arms = () if field is None else (field.annotation, *getattr(field.annotation, "__args__", ()))
    inner = next((arm for arm in arms if isinstance(arm, type) and issubclass(arm, BaseModel)), None)
    return () if inner is None else _allowed(inner, path[1:], _names(inner), given)


def _names(model: type[BaseModel]) -> tuple[str, ...]:
    return tuple(str(field.alias or name) for name, field in model.model_fields.items())


def unknown(raw: Mapping[str, Any], registry: Registry) -> list[Problem]:
    """The names that nobody registered. Imports nothing."""
    found: list[Problem] = []
    for site in sites(raw):
        try:
            if (catalog := site.catalog(registry)) is not None:
                catalog.entry(site.name)
        except PluginError as error:
            found.append(_unusable(site.path, error))
    return found


def _unusable(path: KeyPath, error: PluginError) -> Problem:
    hint = f"\n  {error.hint}" if error.hint else ""
    return Problem((*path, "type"), error.message + hint, plugin=True)


def complete(recipe: sections.Sections, registry: Registry | None) -> None:
    """Writes every default of every component into the recipe. `problems` must have found none.

    What a trained model decides (`init`, `autoencoder.from`) stays open. Without a registry, plugins' own stay as they are.
    """
    for site in sites(recipe.document.value):
        if _decided_elsewhere(recipe, site):
            continue
        section: Any = recipe
        for step in site.path:
            section = getattr(section, str(step)) if isinstance(section, BaseModel) else section[step]
        catalog = None if registry is None else site.catalog(registry)
        model = site.core_options()
        if catalog is not None and (model is None or not catalog.entry(site.name).origin.core):
            model = catalog.options(site.name)
        if model is not None:
            section.__pydantic_extra__ = complete_options(model, section.options)
        if catalog is not None and isinstance(section, sections.Data):
            for key, value in getattr(catalog.load(site.name), "view_defaults", {}).items():
                if key not in section.model_fields_set:
                    setattr(section, key, value)


def _decided_elsewhere(recipe: sections.Sections, site: Site) -> bool:
    if site.path == ("autoencoder",):
        return recipe.autoencoder.from_ is not None
    return recipe.init is not None and site.choice.kind in TRAINED


def complete_options(model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` and the defaults, as JSON values; what `fit` has still to learn is left out."""
    try:
        made = model.model_validate_json(json.dumps(given))
        return made.model_dump(mode="json", by_alias=True, warnings=False)
    except ValidationError:
        defaults = model.model_construct().model_dump(mode="json", by_alias=True, warnings=False)
        return {
            name: given.get(name, defaults.get(name)) for name in _names(model) if name in given or name in defaults
        }


def option_names(site_path: KeyPath, type_: str, registry: Registry) -> tuple[str, ...]:
    """The options of what a recipe may name as `type_` at a place."""
    choice = next(choice for choice in CHOICES if choice.path == site_path)
    model = COMPONENTS[choice.kind].get(type_)
    return _names(registry.catalogs[choice.kind].options(type_) if model is None else model)


def learns(component: Any) -> bool:
    """Whether a conditioner has a `fit` of its own, which may supply options that the recipe leaves out."""
    return sum("fit" in vars(base) for base in getattr(component, "__mro__", ())) > 1


def _unlearned(loaded: Any) -> set[str]:
    from ldmkit.plugins.options import declared

    return {name for name, _, default in declared(loaded) if default is ...} if learns(loaded) else set()
