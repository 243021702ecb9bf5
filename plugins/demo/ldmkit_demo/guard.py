"""In front of the server: what is not needed to show and use the page is refused before gradio sees it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

HOST = "127.0.0.1"
MOST_BODY = 24 * 2**20  # bytes of one request: an image and its mask of the largest size that is taken
# All that the page asks for. No route that reads a file, fetches an address or takes an upload is among them.
ALLOWED = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static)/[\w./-]+"
    r"|/gradio_api/(info/?|app_id/?|theme\.css|startup-events|heartbeat/\w+|queue/(join|data)|cancel|reset/?)"
)
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """In front of gradio: the host is this machine, the route one of those needed, the body bounded, no other page asks."""

    def __init__(self, app: App, *, port: int, public: bool = False) -> None:
        self.app, self.public = app, public
        self.hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await (self.app(scope, receive, send) if scope["type"] == "lifespan" else _closed(receive, send))
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _drained(receive)
            await _answer(send, *refusal)
            return
        body = await _body(receive)
        if body is None:
            await _answer(send, 413, f"a request has at most {MOST_BODY >> 20} MB")
            return
        await self.app(scope, _once(body, receive), _with_policy(send))

    def _refusal(self, scope: Scope, headers: MutableMapping[str, str]) -> tuple[int, str] | None:
        if not self.public and headers.get("host", "") not in self.hosts:
            return 421, "this page is of 127.0.0.1 alone"
        origin = headers.get("origin")
        if not self.public and origin is not None and origin.partition("://")[2] not in self.hosts:
            return 403, "another page may not ask"
        if scope["method"] not in ("GET", "HEAD", "POST") or not ALLOWED.fullmatch(scope["path"]):
            return 404, "there is nothing here"
        if ".." in scope["path"]:
            return 404, "there is nothing here"
        return None


async def _body(receive: Receive) -> bytes | None:
    """All of it; None where it is too large: it is read to its end all the same, so that the answer reaches who sent it."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        size += len(message.get("body", b""))
        if size <= MOST_BODY:
            parts.append(message.get("body", b""))
        else:
            parts.clear()
        if not message.get("more_body"):
            return b"".join(parts) if size <= MOST_BODY else None


async def _drained(receive: Receive) -> None:
    await _body(receive)


def _once(body: bytes, receive: Receive) -> Receive:
    """The body that was read, then what comes after it: that the client has gone."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_policy(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [
                (b"content-security-policy", POLICY.encode()),
                (b"referrer-policy", b"no-referrer"),
                (b"x-content-type-options", b"nosniff"),
            ]
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await send(message)

    return sending


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


async def _closed(receive: Receive, send: Send) -> None:
    """No socket is served: the page needs none."""
    await receive()
    await send({"type": "websocket.close", "code": 1008})
