"""What the web server lets in: what the page needs, and no other files than uploads.

Gradio's server can also fetch addresses for its clients, record, edit apps and speak other
protocols. None of that is of use here.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PATHS = re.compile(
    r"/|/config/?|/theme\.css|/manifest\.json|/robots\.txt|/favicon\.ico|/(assets|static)/.*"
    r"|/gradio_api/(heartbeat/\w+|queue/(join|data)|cancel|reset|upload|upload_progress|file=/.*)"
)
UPLOAD = "/gradio_api/upload"
MOST_BODY = 2**20  # bytes of any other request
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
FILES = "/gradio_api/file="
HEADERS = [(b"referrer-policy", b"no-referrer"), (b"x-content-type-options", b"nosniff")]


class Guard:
    """ASGI middleware: 404 for other paths, 413 for large bodies, headers that forbid the network.

    Args:
        app: the application behind it.
        most_upload: bytes of a request that uploads.
    """

    def __init__(self, app: Any, most_upload: int) -> None:
        self.app = app
        self.most_upload = most_upload

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http" or not PATHS.fullmatch(scope["path"]):
            return await _refuse(scope, send, 404, b"not found")
        if scope["method"] == "POST":
            most = self.most_upload if scope["path"] == UPLOAD else MOST_BODY
            if not _is_short(dict(scope["headers"]), most):
                return await _refuse(scope, send, 413, b"request too large")

        # an upload that is opened by itself, an SVG for instance, must not run scripts
        policy = "sandbox; default-src 'none'" if scope["path"].startswith(FILES) else POLICY
        headers = [*HEADERS, (b"content-security-policy", policy.encode("ascii"))]

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        return await self.app(scope, receive, with_headers)


def _is_short(headers: dict[bytes, bytes], most: int) -> bool:
    """Whether the length of a body is known and at most ``most``; chunks would go on past it."""
    length = headers.get(b"content-length", b"")
    return b"transfer-encoding" not in headers and length.isdigit() and int(length) <= most


async def _refuse(scope: Message, send: Send, status: int, text: bytes) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def keep_inside(page: Any, folder: Path) -> None:
    """Let the components of ``page`` take files below ``folder`` only, whatever a client sends.

    A page that is part of another application, as here, takes any file of this machine otherwise,
    and fetches addresses.

    Args:
        page: a ``gradio.Blocks``. Its components, not their classes, are changed.
        folder: of uploads.
    """

    import gradio as gr

    def inside(move: Callable[[Any], Awaitable[str | None]]) -> Any:
        async def checked(place: Any) -> str | None:
            address = re.match(r"\w+:", str(place))
            if address or not Path(place).resolve().is_relative_to(folder):
                raise gr.Error("this is not an upload", print_exception=False)
            return await move(place)

        return checked

    for block in page.blocks.values():
        block.async_move_resource_to_block_cache = inside(block.async_move_resource_to_block_cache)
