"""Plugins: what is registered, by whom, and how a name becomes an object. Loads no torch."""

from ldmkit.plugins.catalog import Entry, Origin, Problem
from ldmkit.plugins.manager import Discovery, Plugin, Registry, load, switched_off

__all__ = ["Discovery", "Entry", "Origin", "Plugin", "Problem", "Registry", "load", "switched_off"]
