"""Recipe + Registry -> LatentDiffusion: the only place where names become objects."""

from ldmkit.assembly.construction import (
    Uninitialised,
    assemble,
    autoencoder_of,
    conditioner_of,
    reset_meta_buffers,
    samplers,
)
from ldmkit.assembly.extra_losses import extra_losses
from ldmkit.assembly.fields import check_fields
from ldmkit.assembly.fitting import fit, learned_options
from ldmkit.assembly.from_recipe import build
from ldmkit.assembly.inheritance import inherited
from ldmkit.assembly.locations import model_folder
from ldmkit.assembly.restoration import Reader, load, plugin_files, require_parts, restore
from ldmkit.assembly.sources import datasets, source_of

__all__ = [
    "Reader",
    "Uninitialised",
    "assemble",
    "autoencoder_of",
    "build",
    "check_fields",
    "conditioner_of",
    "datasets",
    "extra_losses",
    "fit",
    "inherited",
    "learned_options",
    "load",
    "model_folder",
    "plugin_files",
    "require_parts",
    "reset_meta_buffers",
    "restore",
    "samplers",
    "source_of",
]
