"""Latent diffusion in which every conditioning modality is a plugin.

Public names are imported when first used (PEP 562): `import ldmkit` and `from ldmkit import hookimpl` load no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldmkit.assembly import build, fit
    from ldmkit.conditioning import (
        Batch,
        Canvas,
        Conditioner,
        ConditionerSet,
        Conditioning,
        ForeignStage,
        LatentSpec,
        Ports,
        Tensors,
        pad_stack,
    )
    from ldmkit.errors import (
        CheckpointError,
        DataError,
        DivergedError,
        LdmkitError,
        OfflineError,
        PluginError,
        RecipeError,
        ResourceError,
        UsageError,
    )
    from ldmkit.latent_diffusion import LatentDiffusion
    from ldmkit.plugins.hookspecs import hookimpl
    from ldmkit.recipe import Recipe
    from ldmkit.recipe import load as load_recipe
    from ldmkit.runs.loading import load
    from ldmkit.runs.run import Run, run

# Public name -> the module it comes from, and its name there where that differs.
_PUBLIC = {
    "load_recipe": "ldmkit.recipe:load",
    "Recipe": "ldmkit.recipe",
    "fit": "ldmkit.assembly",
    "build": "ldmkit.assembly",
    "load": "ldmkit.runs.loading",
    "run": "ldmkit.runs.run",
    "Run": "ldmkit.runs.run",
    "hookimpl": "ldmkit.plugins.hookspecs",
    "LatentDiffusion": "ldmkit.latent_diffusion",
    **dict.fromkeys(
        (
            "Batch",
            "Canvas",
            "Conditioner",
            "ConditionerSet",
            "Conditioning",
            "ForeignStage",
            "LatentSpec",
            "Ports",
            "Tensors",
            "pad_stack",
        ),
        "ldmkit.conditioning",
    ),
    **dict.fromkeys(
        (
            "CheckpointError",
            "DataError",
            "DivergedError",
            "LdmkitError",
            "OfflineError",
            "PluginError",
            "RecipeError",
            "ResourceError",
            "UsageError",
        ),
        "ldmkit.errors",
    ),
}

__all__ = [
    "Batch",
    "Canvas",
    "CheckpointError",
    "Conditioner",
    "ConditionerSet",
    "Conditioning",
    "DataError",
    "DivergedError",
    "ForeignStage",
    "LatentDiffusion",
    "LatentSpec",
    "LdmkitError",
    "OfflineError",
    "PluginError",
    "Ports",
    "Recipe",
    "RecipeError",
    "ResourceError",
    "Run",
    "Tensors",
    "UsageError",
    "__version__",
    "build",
    "fit",
    "hookimpl",
    "load",
    "load_recipe",
    "pad_stack",
    "run",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ldmkit")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ldmkit' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """`ldmkit.build` and `ldmkit.run` are functions, though modules of these names exist.

    Python sets a submodule as an attribute of its package when it is imported, which would hide the function from then on.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
