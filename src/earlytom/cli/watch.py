"""``earlytom watch``: answers about a video while it goes on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from earlytom.cli import _options as opt
from earlytom.cli._output import console, guarded, progress_console, quiet, seconds
from earlytom.errors import ConfigError, EarlyTomError

if TYPE_CHECKING:
    from rich.status import Status

    from earlytom.method import Method
    from earlytom.stream import Feed, Stream, StreamReport


@guarded
def watch(
    source: Annotated[
        str,
        typer.Argument(help="Video file, camera:0, or rtsp:// URL.", show_default=False),
    ],
    question: Annotated[str, typer.Argument(help="Question about it.", show_default=False)],
    every: Annotated[
        float | None,
        typer.Option("--every", help="Ask every so many seconds of video, and at its end."),
    ] = None,
    duration: Annotated[
        float | None, typer.Option("--duration", help="Stop after so many seconds of video.")
    ] = None,
    fps: Annotated[float, typer.Option("--fps", help="Frames per second to look at.")] = 2.0,
    model: opt.Model = None,
    method: opt.MethodName = "earlytom",
    retention_ratio: opt.Ratio = None,
    policy: opt.Policy = None,
    positions: opt.Positions = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window", help="Compress windows of so many frames, not segments. Default: as needed."
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Limit of the memory in visual tokens.")
    ] = None,
    evict: Annotated[
        str, typer.Option("--evict", help="What happens to old tokens above it: thin or drop.")
    ] = "thin",
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Permit an http(s) URL as SOURCE.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Length limit of an answer.")
    ] = 64,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Write one JSON object a line to stdout, nothing else.")
    ] = False,
) -> None:
    """Answer a QUESTION about a SOURCE again and again while its frames come in."""
    screen = _Screen(question, json_lines)
    try:
        with screen.progress.status("checking the source") as status:
            from earlytom.stream import Feed, Stream

            for name, value in (("every", every), ("duration", duration)):
                if value is not None and not 0 < value < float("inf"):
                    raise ConfigError(f"{name} must be a finite number > 0, got {value!r}")
            feed = Feed(source, fps, allow_http)
            if feed.live and every is None and duration is None:
                raise ConfigError(
                    "a camera or network stream does not end by itself: give --every or --duration"
                )
            if feed.live and positions is None:
                positions = "renumber"  # places among all frames would run out of the model's range
            settings = {"retention_ratio": retention_ratio, "positions": positions}
            wanted = _method(method, policy, window, settings)
            status.update("loading the model")
            from earlytom.pipeline import VideoQA

            quiet()
            qa = VideoQA.load(model, device=device, dtype=dtype)
            stream = Stream(qa, wanted, window=window, max_tokens=max_tokens, evict=evict)
        _run(feed, stream, screen, every, duration, max_new_tokens)
    except EarlyTomError as e:
        if json_lines:
            screen.line({"event": "error", "error": str(e)})
        raise


def _method(
    name: str, policy: str | None, window: int | None, settings: dict[str, Any]
) -> Method | None:
    """Build the method; EarlyTom as is best for streams, unless another policy is asked for."""
    from earlytom.stream.segmentwise import RECOMMENDED

    if name == "earlytom" and window is None and policy in (None, RECOMMENDED["policy"]):
        settings = {**RECOMMENDED, **settings}
    else:
        settings = {"policy": policy, **settings}
    return opt.make_method(name, **settings)


def _run(
    feed: Feed,
    stream: Stream,
    screen: _Screen,
    every: float | None,
    duration: float | None,
    max_new_tokens: int,
) -> None:
    due, asked = every, -1
    try:
        with screen.progress.status("waiting for the first frame") as status, feed as frames:
            for frame in frames:
                if duration is not None and frame.time > duration:
                    break
                stream.push(frame.image, frame.time)
                screen.show(status, stream, frame.time)
                if every is not None and due is not None and frame.time >= due:
                    asked = stream.frames
                    screen.ask(stream, max_new_tokens, status)
                    due = (frame.time // every + 1) * every
            if asked != stream.frames:
                screen.ask(stream, max_new_tokens, status)
    finally:
        if stream.frames:
            screen.end(feed, stream)


class _Screen:
    """Where answers go: text and a table, or JSON lines."""

    def __init__(self, question: str, json_lines: bool) -> None:
        self.question, self.json_lines = question, json_lines
        self.progress: Console = progress_console()

    def line(self, data: dict[str, Any]) -> None:
        """Write one JSON object."""
        typer.echo(json.dumps(data, allow_nan=False))

    def show(self, status: Status, stream: Stream, time: float) -> None:
        """Update the line that says how things are."""
        report = stream.report()
        assert report.push is not None
        status.update(
            f"{time:.1f} s, {report.frames} frames, {report.memory_tokens} tokens, "
            f"{seconds(report.push.median)} a frame (p95 {seconds(report.push.p95)})"
        )

    def ask(self, stream: Stream, max_new_tokens: int, status: Status) -> None:
        """Ask, and write the answer as it comes."""
        status.stop()
        if self.json_lines:
            answer = stream.ask(self.question, max_new_tokens=max_new_tokens)
            self.line({"event": "answer", "question": self.question, **answer.to_dict()})
        else:
            typer.echo(f"{stream.time:8.1f} s  ", nl=False)
            stream.ask(
                self.question,
                max_new_tokens=max_new_tokens,
                stream=lambda text: typer.echo(text, nl=False),
            )
            typer.echo()
        status.start()

    def end(self, feed: Feed, stream: Stream) -> None:
        """Write the summary."""
        report = stream.report()
        if self.json_lines:
            lost = {"dropped": feed.dropped, "damaged": feed.damaged}
            return self.line({"event": "end", **lost, **report.to_dict()})
        typer.echo()
        return console().print(_table(report, feed))


def _table(report: StreamReport, feed: Feed) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = [
        ("video", f"{report.seconds:.1f} s"),
        ("frames", f"{report.frames}"),
        ("frames dropped", f"{feed.dropped}" if feed.live else "-"),
        ("damaged packets", f"{feed.damaged}"),
        ("visual tokens kept", f"{report.kept_tokens}"),
        ("visual tokens evicted", f"{report.evicted_tokens}"),
        ("KV cache", f"{report.cache_columns} columns"),
    ]
    for name, latency in (("a frame", report.push), ("first token", report.first_token)):
        if latency is not None:
            rows.append((f"{name}, median", seconds(latency.median)))
            rows.append((f"{name}, p95", seconds(latency.p95)))
    for row in rows:
        table.add_row(*row)
    return table
