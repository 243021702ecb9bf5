"""What a recipe leaves open is what the trained model it starts from has: `init` and `autoencoder.from`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ldmkit.assembly.locations import model_folder
from ldmkit.errors import CheckpointError
from ldmkit.latent_diffusion import read_config
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe

WIDTHS = ("in_channels", "out_channels", "context_width")  # follow from the autoencoder and the conditioners
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
    if recipe.init is not None and _open(recipe.denoiser):
        where = recipe.init.from_
        source = _config(where, "denoiser", "`autoencoder: {from: ...}` takes a first stage alone")
        changes["denoiser"] = _denoiser(recipe, source["denoiser"])
        changes["diffusion"] = _under(recipe.diffusion, source["diffusion"])
        changes["autoencoder"] = _autoencoder(recipe, source["autoencoder"], where)
        changes |= _slots(recipe, source["conditioners"])
    if (where_from := recipe.autoencoder.from_) is not None and _open(recipe.autoencoder):
        trained = _config(where_from, "autoencoder", "give a run, a saved model, or what `ldmkit import` wrote")
        changes["autoencoder"] = _autoencoder(recipe, trained["autoencoder"], where_from)
    if not changes:
        return recipe
    # Validated first: a source's own defaults go before those of the section, which `updated` writes out.
    return recipe.validate_components(registry).updated(changes).validate_components(registry)


def _open(section: BaseModel) -> bool:
    """Whether something of the section is left to others. What is no option of a network does not count."""
    left = set(type(section).model_fields) - section.model_fields_set - {"from_", "train", "scale", "loss"}
    return bool(left)


def _config(where: str, part: str, hint: str) -> dict[str, Any]:
    folder = model_folder(where)
    config = read_config(folder)
    if not isinstance(config.get(part), Mapping):
        raise CheckpointError(f"there is no {part} in {where}", hint=hint)
    return config


def _said(section: BaseModel) -> dict[str, Any]:
    """What the recipe writes of a section, as JSON values."""
    return section.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _under(section: BaseModel, source: Mapping[str, Any]) -> dict[str, Any]:
    return {**source, **_said(section)}


def _autoencoder(recipe: Recipe, source: Mapping[str, Any], where: str) -> dict[str, Any]:
    said = _said(recipe.autoencoder)
    if (kind := said.get("type", source["type"])) != source["type"]:
        raise recipe.error(f"is {kind}, and {where} has {source['type']}", "autoencoder", "type", hint="leave it out")
    return {**source, **said}


def _denoiser(recipe: Recipe, source: Mapping[str, Any]) -> dict[str, Any]:
    said = _said(recipe.denoiser)
    kept = {key: value for key, value in source.items() if key not in WIDTHS}
    if any(said.get(key) is not None for key in EITHER):
        kept |= dict.fromkeys(EITHER)
    variant = {**source["variant"], **said.get("variant", {})}
    return {"type": recipe.denoiser.type, **kept, **said, "variant": variant}


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
