"""Recipes: strict YAML, `extends`, overrides, models of every section, and errors with file, line and column. No torch."""

from ldmkit.recipe.loading import bundled, find, load
from ldmkit.recipe.model import Recipe
from ldmkit.recipe.objective import Diffusion
from ldmkit.recipe.sections import (
    AutoencoderLoss,
    Data,
    Denoiser,
    Metric,
    Sample,
    Slot,
)
from ldmkit.recipe.training import AutoencoderTrain, Runtime, Train

__all__ = [
    "AutoencoderLoss",
    "AutoencoderTrain",
    "Data",
    "Denoiser",
    "Diffusion",
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
