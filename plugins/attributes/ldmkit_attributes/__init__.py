"""Attributes, any subset of a list of words, as a conditioner for ldmkit.

Loads no torch: the conditioner's module is imported when a recipe asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldmkit import hookimpl

if TYPE_CHECKING:
    from ldmkit.plugins.hookspecs import Register


@hookimpl
def ldmkit_register_conditioners(register: Register) -> None:
    """Registers `attributes`."""
    register("attributes", "ldmkit_attributes.conditioner:AttributesConditioner")
