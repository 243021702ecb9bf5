"""The commands that plugins add to ldmkit's own."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ldmkit.plugins import Registry


def commands(registry: Registry, verbs: Collection[str]) -> dict[str, click.Command]:
    """Name -> command of every plugin. One whose commands fail, or that takes one of the `verbs`, is in `registry.problems`."""
    group = click.Group("ldmkit", commands={verb: click.Command(verb) for verb in verbs})
    registry.commands(group)
    return {name: command for name, command in group.commands.items() if name not in verbs}
