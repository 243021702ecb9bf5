"""`ldmkit demo RUN...`: a page to try models on. Loads neither torch nor gradio."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldmkit import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def ldmkit_register_commands(group: click.Group) -> None:
    """Adds `ldmkit demo`."""
    from ldmkit_demo.command import command

    group.add_command(command)
