"""`ldmkit demo RUN...`. Imports neither torch nor gradio until it is called."""

from __future__ import annotations

import click


@click.command(name="demo")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: one that is free, from 7860 up.")
@click.option("--weights", type=click.Choice(["ema", "raw"]), default="ema", show_default=True, help="Which weights.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda ...")
@click.option("--open", "browser", is_flag=True, help="Open it in the browser.")
@click.option(
    "--share", is_flag=True, help="A public address for three days, through a host of gradio's; see the next one."
)
@click.option(
    "--yes-share-publicly", "public", is_flag=True, help="Needed beside --share: whoever has the address can use it."
)
@click.option("-p", "--plugin", "files", multiple=True, metavar="FILE", help="Load a plugin from a Python file.")
def command(
    runs: tuple[str, ...],
    port: int | None,
    weights: str,
    device: str,
    browser: bool,
    share: bool,
    public: bool,
    files: tuple[str, ...],
) -> None:
    """A page to try models on, here alone (127.0.0.1). RUN as in `ldmkit sample`; several stand side by side.

    Its inputs are those of the model's conditions. Beside the images it writes the command that makes the same ones.
    """
    if share != public:
        asked, missing = ("--share", "--yes-share-publicly") if share else ("--yes-share-publicly", "--share")
        raise click.UsageError(
            f"{asked} alone does nothing: a public address lets anybody use this machine; if you mean it, give {missing} too"
        )
    from ldmkit_demo.server import serve

    serve(
        runs,
        port=port,
        weights="raw" if weights == "raw" else "ema",
        device=device,
        browser=browser,
        share=share,
        files=files,
    )
