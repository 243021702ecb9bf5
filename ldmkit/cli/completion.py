"""`ldmkit completion SHELL`: what a shell reads to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion of a shell.

    bash and zsh: eval "$(ldmkit completion bash)" in ~/.bashrc or ~/.zshrc; fish: ldmkit completion fish | source
    """
    from ldmkit.cli import group

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(group, {}, "ldmkit", "_LDMKIT_COMPLETE").source())
