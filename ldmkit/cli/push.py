"""`ldmkit push RUN OWNER/NAME`: a trained model to the Hugging Face hub."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import click

from ldmkit.cli.shared import aside, echo_json, json_option, plugin_files

NAME = re.compile(r"[\w.-]+/[\w.-]+")


@click.command(name="push")
@click.argument("run", metavar="RUN")
@click.argument("name", metavar="OWNER/NAME")
@click.option(
    "--licence", metavar="NAME", help="For the model card: apache-2.0, cc-by-4.0 ... Asked for where none is stated."
)
@click.option("--public", is_flag=True, help="Everybody may read it; a new repository is private otherwise.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent and stop, without a network.")
@click.option("--weights", type=click.Choice(["ema", "raw"]), default="ema", show_default=True, help="Which weights.")
@plugin_files
@json_option
def command(
    run: str,
    name: str,
    licence: str | None,
    public: bool,
    dry_run: bool,
    weights: str,
    files: tuple[str, ...],
    as_json: bool,
) -> None:
    """Send a trained model with its card to the Hugging Face hub; `ldmkit.load("OWNER/NAME")` reads it there.

    What is sent is listed first. The token is huggingface_hub's own: `hf auth login`, or the variable HF_TOKEN.
    """
    if not NAME.fullmatch(name):
        raise click.UsageError(f"{name!r} is no repository; write OWNER/NAME, such as anna/digits")

    from ldmkit import plugins
    from ldmkit.interop.exporting import export_to
    from ldmkit.interop.model_card import stated_licence
    from ldmkit.runs.loading import load

    folder = Path(run).expanduser()
    licence = licence or stated_licence(folder) or _asked(dry_run)
    registry = plugins.load(files=files) if files else None
    model = load(run, "raw" if weights == "raw" else "ema", registry=registry, note=aside)
    with tempfile.TemporaryDirectory() as place:
        written = Path(place) / name.partition("/")[2]
        export_to(model, written, "hub", run=folder, both=weights == "ema", licence=licence)
        sent = {
            path.relative_to(written).as_posix(): path.stat().st_size
            for path in sorted(written.rglob("*"))
            if path.is_file()
        }
        facts = {"name": name, "licence": licence, "public": public, "files": sent, "sent": not dry_run}
        if not as_json:
            _say(name, licence, public, sent, dry_run)
        if not dry_run:
            facts["url"] = _upload(written, name, public)
            if not as_json:
                click.echo(facts["url"])
    if as_json:
        echo_json(facts)


def _asked(dry_run: bool) -> str:
    """The licence, from whoever sits there. Raises a usage error where nobody does."""
    if sys.stdin.isatty() and not dry_run:
        return str(click.prompt("Under which licence (apache-2.0, cc-by-4.0, other)", err=True)).strip()
    raise click.UsageError("no licence is stated for this model; give one: --licence apache-2.0")


def _say(name: str, licence: str, public: bool, sent: dict[str, int], dry_run: bool) -> None:
    click.echo(
        f"{'would send' if dry_run else 'sending'} to {name} ({'public' if public else 'private'}, licence {licence}):"
    )
    for file, size in sent.items():
        click.echo(f"  {file}  {size / 1e6:.2f} MB")


def _upload(folder: Path, name: str, public: bool) -> str:
    """The address of the repository, made where there is none. Raises OfflineError with what the hub said."""
    from huggingface_hub import HfApi

    from ldmkit.errors import OfflineError

    api = HfApi()
    try:
        url = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="A model of ldmkit")
    except Exception as error:  # the hub's, those of whichever library asks it, a proxy's page
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OfflineError(
            f"nothing was sent to {name}: {said}", hint="`hf auth login` gives a token; the same command tries again"
        ) from error
    return str(url)
