"""Recipes: strict YAML, `extends`, overrides, models of every section, and errors with file, line and column. No torch."""

from ldmkit.recipe.loading import bundled, find, load
from ldmkit.recipe.model import Recipe
from ldmkit.recipe.objective import Diffusion
from ldmkit.recipe.sections import (
    AutoencoderLoss,
    AutoencoderTrain,
    Data,
    Denoiser,
    Metric,
    Runtime,
    Sample,
    Slot,
    Train,
)

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
