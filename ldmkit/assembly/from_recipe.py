"""A model with fresh weights from a recipe: what `ldmkit.build` does."""

from __future__ import annotations

from typing import Any

import torch

from ldmkit import plugins, random
from ldmkit.assembly.construction import assemble
from ldmkit.assembly.inheritance import inherited
from ldmkit.assembly.restoration import Reader
from ldmkit.assembly.sources import source_of
from ldmkit.conditioning import Dropout
from ldmkit.conditioning.checks import called
from ldmkit.data import Source
from ldmkit.errors import UsageError
from ldmkit.guidance import parse
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe


def build(recipe: Recipe, registry: Registry | None = None, *, source: Source | None = None) -> LatentDiffusion:
    """The model of a recipe on the CPU, with fresh weights drawn from the recipe's seed; what `freeze: true` says is frozen.

    Args:
        source: the recipe's data source, where it was made before.

    Raises:
        RecipeError: an option that `fit` learns from data is missing; the error names slot and option.
    """
    registry = registry or plugins.load()
    recipe = inherited(recipe.validate_components(registry), registry)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random.key(recipe.seed, "init", 0))
        model = assemble(_description(recipe, registry, source), registry)
        if not any(parameter.is_meta for parameter in model.parameters()):
            for slot, conditioner in model.conditioners.items():
                called(model.conditioners.examiner(slot).who, "load_pretrained", conditioner.load_pretrained)
    for name, section in recipe.conditioners.items():
        if section.freeze is True:
            model.conditioners[name].requires_grad_(False)
    _check_guidance(recipe, model)
    model.loader = Reader(registry.discovery)
    return model


def _check_guidance(recipe: Recipe, model: LatentDiffusion) -> None:
    """What the recipe samples with is possible: found out before anything is trained. Raises RecipeError."""
    section = recipe.sample
    kind = section.guidance_options.type
    # Autoguidance needs no null; two others need one whatever the scale is.
    asked = {"autoguidance": (), "plus-plus": (0.0,), "perp-neg": (0.0,)}.get(kind, (section.guidance,))
    try:
        for guidance in asked:
            parse(guidance, tuple(model.conditioners), model.conditioners.dropout.trained)
    except UsageError as error:
        raise recipe.error(error.message, "sample", "guidance", hint=error.hint) from error


def _description(recipe: Recipe, registry: Registry, source: Source | None) -> dict[str, Any]:
    """What `config.json` of the recipe's model says."""
    resolved = recipe.resolved(redact=False)
    if recipe.alone:  # its recipe says nothing of a diffusion model
        rest = {"denoiser": recipe.denoiser, "diffusion": recipe.diffusion}
        resolved |= {name: section.model_dump(mode="json", by_alias=True) for name, section in rest.items()}
    channels = recipe.data.channels or (source or source_of(recipe, registry)).info().channels
    first_stage = recipe.autoencoder.options
    first_stage["image_channels"] = first_stage.get("image_channels") or channels
    _check_channels(recipe, first_stage["image_channels"], channels)
    sampling = {key: value for key, value in resolved["sample"].items() if key not in ("type", "count", "seed")}
    return {
        "size": list(recipe.data.shape),
        "autoencoder": {"type": recipe.autoencoder.type, **first_stage},
        "denoiser": {"type": recipe.denoiser.type, **recipe.denoiser.options},
        "diffusion": resolved["diffusion"],
        "conditioners": {name: _slot(recipe, name, registry) for name in recipe.conditioners},
        "dropout": _dropout(recipe).to_json(),
        "sampling": {"sampler": recipe.sample.type, **sampling},
        "origins": _origins(recipe, registry),
    }


def _origins(recipe: Recipe, registry: Registry) -> dict[str, Any]:
    """Where the parts that plugins have come from, so that loading can name them."""
    named = {
        "autoencoder": registry.autoencoders.entry(recipe.autoencoder.type),
        "denoiser": registry.denoisers.entry(recipe.denoiser.type),
        "schedule": registry.schedules.entry(recipe.diffusion.schedule.type),
    }
    return {part: entry.origin.to_json() for part, entry in named.items() if not entry.origin.core}


def _check_channels(recipe: Recipe, given: int, found: int) -> None:
    if given != found:
        raise recipe.error(
            f"is {given}, and the pictures have {found} channels",
            "autoencoder",
            "image_channels",
            hint="leave it out, or set data.channels",
        )


def _slot(recipe: Recipe, name: str, registry: Registry) -> dict[str, Any]:
    slot = recipe.conditioners[name]
    model = registry.conditioners.options(slot.type)
    missing = [option for option in model.required() if option not in slot.options]
    if missing:
        raise recipe.error(
            f"{', '.join(missing)} is not known yet: it is learned from the data",
            "conditioners",
            name,
            hint="call ldmkit.fit(recipe) before ldmkit.build, or give the option in the recipe",
        )
    return {
        "type": slot.type,
        "options": model.read(slot.options).plain(),
        "fields": dict(slot.fields_),
        "origin": registry.conditioners.entry(slot.type).origin.to_json(),
        "known": slot.known or {},
    }


def _dropout(recipe: Recipe) -> Dropout:
    slots = tuple(recipe.conditioners)
    if recipe.dropout is not None:
        return Dropout.from_table(slots, recipe.dropout)
    return Dropout.independent({name: slot.dropout for name, slot in recipe.conditioners.items()})
