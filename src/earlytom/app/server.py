"""Serving the page: one process, uploads in a folder of its own that goes away with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from earlytom.app.clips import sweep
from earlytom.app.desk import Desk
from earlytom.app.show import style
from earlytom.checks import check_count
from earlytom.errors import MissingExtraError
from earlytom.network import http_url, listen

FOLDER_VARIABLE = "GRADIO_TEMP_DIR"  # the only way to tell Gradio where uploads go
KEEP, EVERY = 3600.0, 300.0  # seconds since its last use that an upload is kept; between looks


def check_extra() -> None:
    """Raise unless what the page needs is installed.

    Raises:
        MissingExtraError: the message names the extra.
    """
    if find_spec("gradio") is None:
        raise MissingExtraError("the page needs Gradio: pip install 'earlytom[demo]'")


@contextlib.contextmanager
def upload_folder() -> Iterator[Path]:
    """Make a folder for what Gradio writes, for this process, and delete it at the end."""
    before = os.environ.get(FOLDER_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="earlytom-app-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        os.environ[FOLDER_VARIABLE] = str(folder)
        try:
            yield folder
        finally:
            if before is None:
                os.environ.pop(FOLDER_VARIABLE, None)
            else:
                os.environ[FOLDER_VARIABLE] = before


def build_app(desk: Desk, folder: Path, max_upload_mb: int = 200) -> Any:
    """Return the ASGI application.

    Args:
        desk: answers.
        folder: of :func:`upload_folder`.
        max_upload_mb: limit of an upload in MB, >= 1.

    Raises:
        MissingExtraError: Gradio is not installed.
        ConfigError: ``max_upload_mb`` out of range.
    """
    check_extra()
    check_count("max_upload_mb", max_upload_mb)
    import gradio as gr
    from fastapi import FastAPI

    from earlytom.app.guard import MOST_BODY, Guard, keep_inside
    from earlytom.app.page import build_page

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        own = frozenset(folder.rglob("*"))  # pictures of the page
        task = asyncio.create_task(_tidy(folder, own))
        yield
        task.cancel()

    page = build_page(desk, max_upload_mb)
    keep_inside(page, folder)
    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app = gr.mount_gradio_app(
        app,
        page,
        "/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=max_upload_mb * 1_000_000,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=gr.themes.Base(
            primary_hue="sky",
            font=["system-ui", "Segoe UI", "DejaVu Sans", "sans-serif"],  # of the reader's system
            font_mono=["ui-monospace", "monospace"],
        ).set(
            body_text_color_subdued="*neutral_600",
            body_text_color_subdued_dark="*neutral_300",
            block_info_text_color="*neutral_600",
            block_info_text_color_dark="*neutral_300",
            block_label_text_color="*neutral_700",
            block_label_text_color_dark="*neutral_200",
            block_title_text_color="*neutral_700",
            block_title_text_color_dark="*neutral_200",
            button_primary_background_fill="*primary_700",
            button_primary_background_fill_dark="*primary_700",
            button_primary_background_fill_hover="*primary_800",
            button_primary_background_fill_hover_dark="*primary_800",
        ),
        css=style(),
    )
    return Guard(app, max_upload_mb * 1_000_000 + MOST_BODY)  # and room for its envelope


def serve(
    desk: Desk,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload_mb: int = 200,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the page until the process is asked to end (SIGINT, SIGTERM).

    Args:
        desk: answers.
        host: name or address of the interface to listen on.
        port: to listen on; 0 takes a free one.
        max_upload_mb: limit of an upload in MB.
        ready: called with the address once requests are served.

    Raises:
        MissingExtraError: Gradio is not installed.
        ConfigError: a setting out of range.
        EarlyTomError: the address cannot be had.
    """
    check_extra()
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(http_url(host, listener.getsockname()[1]))

    if threading.current_thread() is threading.main_thread():
        # uvicorn raises the signal again when it is done: exit by an exception, which tidies up
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with listen(host, port) as listener, upload_folder() as folder:
        app = build_app(desk, folder, max_upload_mb)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, ws="none")
        Server(config).run(sockets=[listener])


async def _tidy(folder: Path, own: frozenset[Path]) -> None:
    while True:
        await asyncio.sleep(EVERY)
        await asyncio.to_thread(sweep, folder, KEEP, own)
