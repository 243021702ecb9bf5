"""What a recipe leaves open is what the trained model it starts from has: `init` and `autoencoder.from`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from ldmkit.assembly.locations import model_folder
from ldmkit.errors import CheckpointError
from ldmkit.latent_diffusion import read_config
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe
from ldmkit.recipe.base import Component
from ldmkit.recipe.components import complete_options, option_names

# What configurations of UNets say beside their options; it follows from the autoencoder and the conditioners.
DERIVED_WIDTHS = ("in_channels", "out_channels", "context_width")
EITHER = ("heads", "head_width")  # one says it; the other would contradict


def inherited(recipe: Recipe, registry: Registry) -> Recipe:
    """The recipe with what it leaves open taken from the trained models it starts from; what it says stays.

    Networks, noise schedule and prediction, the options of slots that both have (classes, vocabularies): so a recipe that
    fine-tunes need not repeat them. A recipe that says everything, as the resolved one of a run does, reads nothing.

    Raises:
        CheckpointError: what it starts from is not there, or has no such part.
        OfflineError: it is on the hub, and cannot be fetched.
    """
    changes: dict[str, Any] = {}
    if recipe.init is not None and _open(recipe, registry, "denoiser"):
        where = recipe.init.from_
        source = _config(where, "denoiser", "`autoencoder: {from: ...}` takes a first stage alone")
        changes["denoiser"] = _denoiser(recipe, source["denoiser"], registry)
        changes["diffusion"] = _diffusion(recipe, source["diffusion"])
        changes["autoencoder"] = _autoencoder(recipe, source["autoencoder"], where, registry)
        changes |= _slots(recipe, source["conditioners"])
    if (where_from := recipe.autoencoder.from_) is not None and _open(recipe, registry, "autoencoder"):
        trained = _config(where_from, "autoencoder", "give a run, a saved model, or what `ldmkit import` wrote")
        changes["autoencoder"] = _autoencoder(recipe, trained["autoencoder"], where_from, registry)
    if not changes:
        return recipe
    # Validated first: a source's own defaults go before those of the section, which `updated` writes out.
    return recipe.validate_components(registry).updated(changes)


def _open(recipe: Recipe, registry: Registry, section: Literal["autoencoder", "denoiser"]) -> bool:
    """Whether something of the network is left to others."""
    given: Component = getattr(recipe, section)
    if "type" not in given.model_fields_set:
        return True
    names = option_names((section,), given.type, registry)
    return not set(names) <= set(given.options)


def _config(where: str, part: str, hint: str) -> dict[str, Any]:
    folder = model_folder(where)
    config = read_config(folder)
    if not isinstance(config.get(part), Mapping):
        raise CheckpointError(f"there is no {part} in {where}", hint=hint)
    return config


def _said(section: BaseModel) -> dict[str, Any]:
    """What the recipe writes of a section, as JSON values."""
    return section.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _diffusion(recipe: Recipe, source: Mapping[str, Any]) -> dict[str, Any]:
    return {**source, **_said(recipe.diffusion)}


def _complete(kind: str, section: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """With the defaults of options that the source, which may be older, does not know."""
    catalog = registry.catalogs[kind]
    model = catalog.options(section["type"])
    options = {key: value for key, value in section.items() if key in model.names()}
    return {**section, **complete_options(model, options)}


def _autoencoder(recipe: Recipe, source: Mapping[str, Any], where: str, registry: Registry) -> dict[str, Any]:
    said = _said(recipe.autoencoder)
    if (kind := said.get("type", source["type"])) != source["type"]:
        raise recipe.error(f"is {kind}, and {where} has {source['type']}", "autoencoder", "type", hint="leave it out")
    return _complete("autoencoders", {**source, **said}, registry)


def _denoiser(recipe: Recipe, source: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """Options that are mappings are joined key by key."""
    said = _said(recipe.denoiser)
    kept = {"type": "unet", **{key: value for key, value in source.items() if key not in DERIVED_WIDTHS}}
    if (kind := said.get("type", kept["type"])) != kept["type"]:
        raise recipe.error(f"is {kind}, and the source has {kept['type']}", "denoiser", "type", hint="leave it out")
    if any(said.get(key) is not None for key in EITHER):
        kept |= {key: None for key in EITHER if key in kept}
    both = {k: {**kept[k], **said[k]} for k in said if isinstance(said[k], dict) and isinstance(kept.get(k), dict)}
    return _complete("denoisers", {**kept, **said, **both}, registry)


def _slots(recipe: Recipe, source: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> the options of slots of the same name and type, where the recipe says nothing."""
    changes = {}
    for name, slot in recipe.conditioners.items():
        theirs = source.get(name)
        if theirs is None or theirs["type"] != slot.type:
            continue
        written = recipe.document.value.get("conditioners", {}).get(name) or {}
        for key, value in theirs["options"].items():
            if value is not None and written.get(key) is None:
                changes[f"conditioners.{name}.{key}"] = value
    return changes
