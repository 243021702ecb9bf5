"""What several commands share: options, and how they print."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar, cast

import click

if TYPE_CHECKING:
    from ldmkit.plugins import Registry
    from ldmkit.recipe import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def recipe_argument(command: Command) -> Command:
    """RECIPE, --set and -p."""
    command = plugin_files(command)
    command = click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key: --set train.steps=100"
    )(command)
    return click.argument("recipe", metavar="RECIPE")(command)


def plugin_files(command: Command) -> Command:
    """-p FILE, for plugins of a single file, and --no-plugin NAME."""
    command = click.option(
        "--no-plugin",
        multiple=True,
        expose_value=False,
        callback=_switch_off,
        metavar="NAME",
        help="Leave out an installed plugin.",
    )(command)
    return click.option(
        "-p", "--plugin", "files", multiple=True, metavar="FILE", help="Load a plugin from a Python file."
    )(command)


def _switch_off(context: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> None:
    if names:
        from ldmkit import plugins

        context.with_resource(plugins.switched_off(names))


_answers: ContextVar[TextIO | None] = ContextVar("where JSON goes", default=None)


def _json_alone(context: click.Context, parameter: click.Parameter, asked: bool) -> bool:
    if asked:
        context.with_resource(_kept_for_json())
    return asked


@contextmanager
def _kept_for_json() -> Iterator[None]:
    """Inside, standard output is what `echo_json` writes: whatever else prints there, also from C, prints to standard error."""
    stdout = sys.stdout
    stdout.flush()
    try:
        descriptor = stdout.fileno()
    except (OSError, ValueError):  # it is no file: a test's buffer, a notebook
        descriptor = -1
    if descriptor < 0:
        answers, saved = stdout, None
    else:
        saved = os.dup(descriptor)
        answers = os.fdopen(os.dup(descriptor), "w", encoding=stdout.encoding, errors="replace")
        os.dup2(sys.stderr.fileno() if sys.stderr else descriptor, descriptor)
    token = _answers.set(answers)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _answers.reset(token)
        if saved is not None:
            stdout.flush()
            os.dup2(saved, descriptor)
            os.close(saved)
            with suppress(BrokenPipeError):
                answers.close()


json_option = click.option("--json", "as_json", is_flag=True, callback=_json_alone, is_eager=True, help="Print JSON.")


def load_recipe(recipe: str, overrides: Sequence[str], files: Sequence[str]) -> tuple[Recipe, Registry]:
    """A recipe with its components validated: imports them."""
    from ldmkit import plugins
    from ldmkit.recipe import load

    registry = plugins.load(files=files)
    return load(recipe, overrides, registry=registry), registry


def run_folder(run: str) -> Path:
    """The directory of a run. Raises CheckpointError where it is none."""
    from ldmkit.errors import CheckpointError
    from ldmkit.runs.directory import RECIPE

    folder = Path(run).expanduser()
    if not (folder / RECIPE).is_file():
        parent = folder.parent if folder.parent.is_dir() else Path("runs")
        runs = sorted(str(path.parent) for path in parent.glob(f"*/{RECIPE}"))
        raise CheckpointError(
            f"{run} is not a run directory", hint=f"Runs there: {', '.join(runs[:5])}" if runs else None
        )
    return folder


def aside(text: str) -> None:
    """A note to the person that is not part of the output: on standard error."""
    click.echo(f"note: {text}", err=True)


def checkpoint_of(text: str | None) -> int | Literal["newest", "best"] | None:
    """`newest`, `best` or a step."""
    if text is None or text in ("newest", "best"):
        return cast(Literal["newest", "best"] | None, text)
    if not text.isdecimal():
        raise click.UsageError(f"--checkpoint is {text!r}; write newest, best, or a step")
    return int(text)


def echo_json(value: Any) -> None:
    """The output of `--json`, alone on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str), file=_answers.get())


def echo_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns in plain text, as wide as they need to be."""
    lines = [tuple(header), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for number, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        click.echo(click.style(text, bold=True) if number == 0 else text)


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """`["text=a red circle"]` -> `{"text": "a red circle"}`."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise click.UsageError(f"{option} is {text!r}; write {option} name=value")
        if key.strip() in found:
            raise click.UsageError(f"{option} {key.strip()} is given twice")
        found[key.strip()] = value
    return found


def values(texts: Sequence[str], option: str) -> dict[str, Any]:
    """Like `pairs`, with values read as in a recipe: numbers, booleans, lists."""
    from ldmkit.recipe.loading import override_value

    return {key: override_value(text, f"{option} {key}={text}") for key, text in pairs(texts, option).items()}


def guidance_of(texts: Sequence[str]) -> float | dict[str, float] | str | None:
    """`["1.5"]` is a number, `["low_res=1.5", "text=7"]` an ordered mapping, all else an expression over subsets."""
    if not texts:
        return None
    parts = [part for text in texts for part in text.split(",")]
    named = [part.partition("=") for part in parts]
    if all(equals and _NUMBER.fullmatch(scale.strip()) for _, equals, scale in named):
        return {slot.strip(): float(scale) for slot, _, scale in named}
    if len(texts) > 1:
        raise click.UsageError(f"--guidance is {' and '.join(texts)}; write --guidance slot=scale for each slot")
    return float(texts[0]) if _NUMBER.fullmatch(texts[0].strip()) else texts[0]


def size_of(text: str | None) -> tuple[int, int] | None:
    """`64` or `64x96`, height first."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if found is None or int(found[1]) == 0:
        raise click.UsageError(f"--size is {text!r}; write one number, or HEIGHTxWIDTH in pixels, such as 64x96")
    return int(found[1]), int(found[2] or found[1])
