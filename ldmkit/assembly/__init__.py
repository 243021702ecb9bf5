"""Recipe + Registry -> LatentDiffusion: the only place where names become objects."""

from ldmkit.assembly.construction import Uninitialised, assemble, build, conditioner_of, reset_meta_buffers, samplers
from ldmkit.assembly.fitting import fit, learned_options
from ldmkit.assembly.inheritance import inherited
from ldmkit.assembly.locations import model_folder
from ldmkit.assembly.restoration import load, plugin_files, restore
from ldmkit.assembly.sources import datasets, source_of

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
