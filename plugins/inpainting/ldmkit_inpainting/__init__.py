"""Inpainting for ldmkit: a mask and the masked image by concat.

Loads no torch: the conditioners' module is imported when a recipe asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldmkit import hookimpl

if TYPE_CHECKING:
    from ldmkit.plugins.hookspecs import Register


@hookimpl
def ldmkit_register_conditioners(register: Register) -> None:
    """Registers `inpainting` (masks are drawn) and `inpainting-masks` (masks are the data's)."""
    register("inpainting", "ldmkit_inpainting.conditioner:InpaintingConditioner")
    register("inpainting-masks", "ldmkit_inpainting.conditioner:MasksConditioner")
