"""Serves the page on this machine alone: what is not needed to show and use it is refused before gradio sees it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from ldmkit import UsageError, load, plugins
from ldmkit_demo.guard import HOST, App, Guard

if TYPE_CHECKING:
    import gradio as gr
    import uvicorn

    from ldmkit_demo.page import Shown

FIRST_PORT, PORTS = 7860, 100


def serve(
    runs: Sequence[str],
    *,
    port: int | None = None,
    weights: Literal["ema", "raw"] = "ema",
    device: str = "auto",
    browser: bool = False,
    share: bool = False,
    files: Sequence[str] = (),
) -> None:
    """Loads the models and serves until it is interrupted. Raises what `ldmkit.load` does, UsageError for a port in use."""
    from ldmkit_demo.page import Shown

    port = _port(port)
    models = []
    registry = plugins.load(files=files) if files else None
    for run in dict.fromkeys(runs):
        model = load(run, weights, registry=registry, note=lambda text: click.echo(f"note: {text}", err=True))
        models.append(Shown(run, model.to(_device(device)), weights, tuple(files)))
    if share:
        served: Any = share_publicly(models, port, browser=browser)
    else:
        served = Served(models, port)
        if browser:
            webbrowser.open(f"http://{HOST}:{port}")
    click.echo(f"{', '.join(shown.run for shown in models)} on http://{HOST}:{port}   (Ctrl-C ends it)")
    served.block_thread()


class Served:
    """The page of these models on this machine, served in a thread from now on."""

    def __init__(self, models: Sequence[Shown], port: int) -> None:
        self.models, self.port = models, port
        self.server: uvicorn.Server | None = None
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self._run, name="page", daemon=True)
        self.thread.start()
        while not self._started():
            if not self.thread.is_alive():
                if self.errors:
                    raise self.errors[0]
                raise UsageError(f"{HOST}:{port} cannot be listened on", hint="choose another: --port NUMBER")
            time.sleep(0.01)

    def _started(self) -> bool:
        return self.server is not None and self.server.started

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self.errors.append(error)

    async def _serve(self) -> None:
        """Made inside the loop that serves it: outside of one, gradio opens loops that nobody closes."""
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI

        app = gr.mount_gradio_app(
            FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            _page(self.models),
            path="/",
            server_name=HOST,
            server_port=self.port,
            show_error=False,
            pwa=False,
            **_settings(),
        )
        guarded: Any = Guard(cast(App, app), port=self.port)
        self.server = uvicorn.Server(
            uvicorn.Config(guarded, host=HOST, port=self.port, log_level="error", lifespan="on")
        )
        await self.server.serve()

    def block_thread(self) -> None:
        """Returns when it ends; an interrupt ends it."""
        try:
            while self.thread.is_alive():
                self.thread.join(0.5)
        finally:
            self.close()

    def close(self) -> None:
        """Ends it, whoever is connected."""
        if self.server is not None:
            self.server.should_exit = self.server.force_exit = True
        self.thread.join()


def share_publicly(models: Sequence[Shown], port: int, *, browser: bool) -> Any:
    """The same behind a public address, by gradio's own tunnel, which is fetched when it is first used."""
    from starlette.middleware import Middleware

    page = _page(models)
    guard = Middleware(cast(Any, Guard), port=port, public=True)
    page.launch(
        server_name=HOST,
        server_port=port,
        inbrowser=browser,
        share=True,
        prevent_thread_lock=True,
        show_error=False,
        pwa=False,
        app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None},
        **_settings(),
    )
    return page


def _page(models: Sequence[Shown]) -> gr.Blocks:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from ldmkit_demo.page import build

    return build(models)


def _settings() -> dict[str, Any]:
    """What keeps gradio to itself, and how it looks."""
    import gradio as gr

    from ldmkit_demo.page import FONT, MONOSPACE, STYLE

    return {
        "footer_links": [],
        "allowed_paths": [],
        "max_file_size": 0,
        "ssr_mode": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "run_history": False,
        "theme": gr.themes.Default(primary_hue="blue", neutral_hue="zinc", font=FONT, font_mono=MONOSPACE),
        "css": STYLE,
    }


def _port(asked: int | None) -> int:
    """The one asked for, or the first that is free. Raises UsageError."""
    for port in [asked] if asked is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((HOST, port))
            except OSError:
                continue
            return port
    where = f"port {asked}" if asked is not None else f"each port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
    raise UsageError(f"{where} is taken on {HOST}", hint="choose another: --port NUMBER")


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # the second is what torch says of a device that it is built without
        raise UsageError(f"there is no device {name!r} here", hint="auto, cpu, cuda, cuda:1, mps ...") from error
