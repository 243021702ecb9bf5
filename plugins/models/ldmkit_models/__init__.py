"""Small trained models for ldmkit: `ldmkit sample digits -c class=7`. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ldmkit import hookimpl

if TYPE_CHECKING:
    from ldmkit.plugins.hookspecs import Register

NAMES = ("digits",)


@hookimpl
def ldmkit_register_models(register: Register) -> None:
    """Registers the models of this package, each in the folder of its name."""
    for name in NAMES:
        register(name, Path(__file__).parent / name)
