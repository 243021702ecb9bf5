"""A recipe's `losses` -> the extra terms of one stage, with fresh parameters."""

from __future__ import annotations

from functools import partial

import torch

from ldmkit import random
from ldmkit.assembly.construction import latent_spec
from ldmkit.conditioning.checks import called
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.losses import ExtraLosses, Loss
from ldmkit.losses.extra import Part
from ldmkit.plugins import Registry
from ldmkit.plugins.options import fill
from ldmkit.recipe import Recipe


def extra_losses(recipe: Recipe, registry: Registry, stage: type[Loss], model: LatentDiffusion) -> ExtraLosses:
    """The terms of the recipe that are of `stage` (`AutoencoderTerm` or `DiffusionTerm`), drawn from the recipe's seed.

    Raises PluginError where a constructor fails, UsageError for a layer that the denoiser does not have.
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
        for layer in getattr(term, "layers", ()):
            model.denoiser.layer(layer)
        parts[name] = Part(term, section.weight, section.until)
    return ExtraLosses(parts)
