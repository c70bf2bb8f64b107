"""``earlytom app``: a web page to try methods on."""

# not app.py: the package has an `app` already, its Typer object

from __future__ import annotations

from typing import Annotated

import typer

from earlytom.cli import _options as opt
from earlytom.cli._output import emit, guarded, progress_console, quiet


@guarded
def serve_app(
    host: Annotated[
        str, typer.Option("--host", help="Interface to listen on; 0.0.0.0 for all of them.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.")] = 7860,
    model: opt.Model = None,
    frames: opt.Frames = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Length limit of the answers.")
    ] = 64,
    max_upload_mb: Annotated[
        int, typer.Option("--max-upload-mb", min=1, help="Limit of an uploaded video in MB.")
    ] = 200,
    as_json: opt.AsJson = False,
) -> None:
    """Serve a web page: pick or upload a video, ask, and see what a method kept.

    Needs the extra `demo`. Nothing but this server is contacted. Ends with Ctrl-C.
    """
    progress = progress_console()
    with progress.status("loading the model") as status:
        from earlytom.app.desk import Desk
        from earlytom.app.server import check_extra, serve
        from earlytom.network import listen

        check_extra()
        listen(host, port).close()  # refuse a bad address before the model is loaded
        from earlytom.pipeline import VideoQA

        quiet()
        qa = VideoQA.load(model, device=device, dtype=dtype)
        status.update("generating clips")
        desk = Desk(qa, frames, max_new_tokens)

    def ready(address: str) -> None:
        if as_json:
            return emit({"address": address})
        return typer.echo(f"{address}  (Ctrl-C ends it)")

    serve(desk, host, port, max_upload_mb, ready)
