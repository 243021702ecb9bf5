"""A recipe's `losses` -> the extra terms of one stage, with fresh parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from ldmkit import random
from ldmkit.assembly.construction import latent_spec
from ldmkit.conditioning.checks import called
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.losses import DiffusionTerm, ExtraLosses, Loss
from ldmkit.losses.extra import Part, layer_features
from ldmkit.messages import did_you_mean
from ldmkit.plugins import Registry
from ldmkit.plugins.options import fill
from ldmkit.recipe import Recipe


def extra_losses(recipe: Recipe, registry: Registry, stage: type[Loss], model: LatentDiffusion) -> ExtraLosses:
    """The terms of the recipe that are of `stage` (`AutoencoderTerm` or `DiffusionTerm`), drawn from the recipe's seed.

    Raises PluginError where a constructor fails, UsageError for a layer that the denoiser does not have, RecipeError for a
    slot that the recipe does not have, and where a term reads the average of the weights and none is kept.
    """
    parts: dict[str, Part] = {}
    for name, section in recipe.losses.items():
        kind = registry.losses.load(section.type)
        if not issubclass(kind, stage):
            continue
        arguments = registry.losses.options_of(kind).read(section.options).arguments()
        given = fill(kind, LatentSpec=latent_spec(model))
        who = f"the loss {name} ({kind.__name__}, {registry.losses.entry(section.type).origin})"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.key(recipe.seed, f"losses/{name}", 0))
            term = called(who, "__init__", partial(kind, **arguments, **given))
            called(who, "load_pretrained", term.load_pretrained)
            if isinstance(term, DiffusionTerm):
                _check(name, term, recipe, model)
                called(who, "setup", partial(term.setup, _feature_shapes(model, term.layers)))
        parts[name] = Part(term, section.weight, section.until)
    return ExtraLosses(parts)


def _check(name: str, term: DiffusionTerm, recipe: Recipe, model: LatentDiffusion) -> None:
    """Before anything is trained: everything the term asks for is there."""
    for slot in term.slots:
        if slot not in model.conditioners:
            raise recipe.error(
                f"the loss {name} asks about the slot {slot!r}{did_you_mean(slot, model.conditioners)}; "
                f"the recipe has {', '.join(model.conditioners) or 'none'}",
                "losses",
                name,
            )
    if term.averages and recipe.train.ema is None:
        raise recipe.error(f"the loss {name} reads the average of the weights; set train.ema", "losses", name)
    if term.averages and recipe.runtime.distributed == "fsdp":
        raise recipe.error(
            f"the loss {name} reads the average of the weights, which is split among the processes; use runtime.distributed: ddp",
            "losses",
            name,
        )


def _feature_shapes(model: LatentDiffusion, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Layer -> the shape of one image's features: from one pass over a latent of zeros, every condition null."""
    if not layers:
        return {}
    with torch.no_grad(), layer_features(model.denoiser, layers) as features:
        latent = torch.zeros(1, *model.latent_shape(model.size), device=model.device)
        model.eval()
        model.predict(latent, torch.zeros(1, device=model.device), model.condition())
    return {name: tuple(value.shape[1:]) for name, value in features.items()}
