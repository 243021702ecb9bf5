"""Recipes: strict YAML, `extends`, overrides, models of every section, and errors with file, line and column. No torch."""

from ldmkit.recipe.loading import bundled, find, load
from ldmkit.recipe.model import Recipe
from ldmkit.recipe.sections import Autoencoder, Data, Denoiser, Diffusion, ExtraLoss, Metric, Sample, Slot
from ldmkit.recipe.training import AutoencoderTrain, Runtime, Train

__all__ = [
    "Autoencoder",
    "AutoencoderTrain",
    "Data",
    "Denoiser",
    "Diffusion",
    "ExtraLoss",
    "Metric",
    "Recipe",
    "Runtime",
    "Sample",
    "Slot",
    "Train",
    "bundled",
    "find",
    "load",
]
