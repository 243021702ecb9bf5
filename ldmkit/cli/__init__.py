"""The command line: one thin file a verb. Commands import what they need when they are called, so `--help` loads no torch.

Exit codes: 0 done; 2 an error that the user can fix; 1 ours; 130 and 143 interrupted.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NoReturn

import click

VERBS = (
    "run",
    "sample",
    "evaluate",
    "report",
    "plan",
    "data",
    "recipe",
    "plugins",
    "doctor",
    "import",
    "export",
    "push",
    "tail",
    "ema",
    "verify-resume",
    "completion",
)

FIRST_SCREEN = """\
ldmkit {version}: latent diffusion in which every conditioning modality is a plugin

  ldmkit run superres                 train on real photographs, 5 minutes on 2 CPU cores, and write a report
  ldmkit recipe list                  the recipes that are ready to run
  ldmkit recipe copy superres         get one to change; `ldmkit plan FILE` shows what it would train
  ldmkit data check FOLDER            what is understood of your own images, and the recipe lines that use them
  ldmkit plugins list                 what is installed: conditioners, denoisers, losses, data sources ...

`ldmkit --help` lists every command, `ldmkit COMMAND --help` explains one.
"""


class Verbs(click.Group):
    """Finds a command in the file of its name, or among those of plugins, which are asked where it is none of ldmkit's own."""

    def list_commands(self, context: click.Context) -> list[str]:
        from ldmkit.errors import LdmkitError

        try:
            return [*VERBS, *sorted(_plugins_own())]
        except LdmkitError:  # `ldmkit plugins list` says what is wrong; help helps
            return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return _plugins_own().get(name)
        module = f"{name.replace('-', '_')}{'_' * (name == 'import')}"
        command: click.Command = importlib.import_module(f"ldmkit.cli.{module}").command
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(context, args)
        except click.UsageError as error:
            from ldmkit.messages import did_you_mean

            if "ossible" not in error.message and (guess := did_you_mean(args[0], self.list_commands(context))):
                raise click.UsageError(error.message + guess, context) from None
            raise


@cache
def _plugins_own() -> dict[str, click.Command]:
    from ldmkit import plugins
    from ldmkit.cli.plugin_commands import commands

    return commands(plugins.load(), VERBS)


@click.group(cls=Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ldmkit", message="ldmkit %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def group(context: click.Context, debug: bool) -> None:
    """Latent diffusion in which every conditioning modality is a plugin."""
    if context.invoked_subcommand is None:
        from importlib.metadata import version

        click.echo(FIRST_SCREEN.format(version=version("ldmkit")), nl=False)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `ldmkit` command."""
    from ldmkit.training.openmp import wait_passively

    if "_LDMKIT_COMPLETE" in os.environ:  # a shell asks what may come next
        sys.exit(group.main(prog_name="ldmkit"))
    wait_passively()  # before anything imports torch
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a narrow code page is no reason to fail
    # Accepted before and after the command's name.
    sys.exit(_call([argument for argument in given if argument != "--debug"], debug))


def _call(arguments: list[str], debug: bool) -> int:
    from ldmkit.errors import LdmkitError

    try:
        # `group.main` would have its own idea of exit codes
        with _plain_warnings(debug), group.make_context("ldmkit", arguments) as context:
            group.invoke(context)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
        return 0
    except LdmkitError as error:
        return _report(error, error.exit_code, debug)
    except Exception as error:
        # What a signal ended in good order says its code itself (`ldmkit.training.stop`, not imported here: torch).
        code = getattr(error, "exit_code", None)
        return _report(error, code, debug) if isinstance(code, int) else _ours(error, debug)


@contextlib.contextmanager
def _plain_warnings(debug: bool) -> Iterator[None]:
    """A warning is one line for the user, without the place in the code that gave it."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        click.echo(f"warning: {message}", err=True)

    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = show
        yield


def _report(error: Exception, code: int, debug: bool) -> int:
    rank = int(os.environ.get("RANK") or 0)
    whose = f"[rank {rank}] " if rank else ""
    if debug:
        traceback.print_exception(error)
    elif not getattr(error, "elsewhere", False):
        click.echo(whose + (f"error: {error}" if code == 2 else str(error)), err=True)
    return code


def _ours(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    else:
        from ldmkit.plugins.catalog import last_line

        click.echo(f"internal error: {last_line(error)}", err=True)
        click.echo("  This is a fault in ldmkit or a plugin; run again with --debug to see where", err=True)
    return 1
