"""Recipe + Registry -> LatentDiffusion: the only place where names become objects."""

from ldmkit.build.assembling import Uninitialised, assemble, build, conditioner_of, reset_meta_buffers, samplers
from ldmkit.build.fitting import fit, learned_options
from ldmkit.build.inheriting import inherited
from ldmkit.build.loading import load, plugin_files, restore
from ldmkit.build.places import model_folder
from ldmkit.build.sources import datasets, source_of

__all__ = [
    "Uninitialised",
    "assemble",
    "build",
    "conditioner_of",
    "datasets",
    "fit",
    "inherited",
    "learned_options",
    "load",
    "model_folder",
    "plugin_files",
    "reset_meta_buffers",
    "restore",
    "samplers",
    "source_of",
]
