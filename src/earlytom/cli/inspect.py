"""``earlytom inspect``: what methods kept of a video, as a page, pictures and a video."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from earlytom.cli import _options as opt
from earlytom.cli._output import emit, guarded, progress_console, quiet
from earlytom.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from earlytom.inspect import Inspection
    from earlytom.method import Method

DEFAULT_OUT = Path("report.html")
SHIPPED_QUESTION = "how many shots are there?"  # in words that the shipped model knows
QUESTION = "What happens in this video?"


@guarded
def inspect(
    video: Annotated[str, typer.Argument(help="Video file.", show_default=False)],
    question: Annotated[
        str | None, typer.Argument(help="Question about it.", show_default=False)
    ] = None,
    model: opt.Model = None,
    method: opt.MethodName = "afterimage",
    retention_ratio: opt.Ratio = None,
    policy: opt.Policy = None,
    positions: opt.Positions = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            help="More methods to show beside it, with commas: names of `earlytom methods`, or "
            "variants such as earlytom-official.",
        ),
    ] = None,
    frames: opt.Frames = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Sample this many frames per second instead.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Page to write. Default: report.html, if nothing else is."),
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", help="Folder for pictures (made if missing).")
    ] = None,
    mp4: Annotated[Path | None, typer.Option("--mp4", help="Overlay video to write.")] = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Permit an http(s) URL as VIDEO.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Length limit of the answers.")
    ] = 64,
    as_json: opt.AsJson = False,
) -> None:
    """Show what a compression method kept of a VIDEO, and what it answered to a QUESTION.

    Writes one HTML page that needs nothing but itself. --json prints the data behind it.
    """
    progress = progress_console()
    if out is None and not (png or mp4 or as_json):
        out = DEFAULT_OUT
    _check_targets(out, png, mp4)
    with progress.status("checking the video") as status:
        from earlytom.video import load_video
        from earlytom.video.sampling import Sampling
        from earlytom.video.source import check_source

        Sampling(frames, fps)  # refuse bad requests before the model is loaded
        check_source(video, allow_http)
        chosen = method, compare, retention_ratio, policy, positions
        _methods(*chosen)
        status.update("loading the model")
        from earlytom.inspect import inspect_video
        from earlytom.pipeline import VideoQA

        quiet()
        qa = VideoQA.load(model, device=device, dtype=dtype)
        status.update("decoding the video")
        count = qa.frames if frames is None and fps is None else frames
        loaded = load_video(video, count, fps=fps, allow_http=allow_http)
        asked = question or (SHIPPED_QUESTION if model is None else QUESTION)
        found = inspect_video(
            qa,
            loaded,
            asked,
            {
                label: opt.fit(m, qa.model)
                for label, m in _methods(*chosen, depth=len(qa.adapter.decoder_layers)).items()
            },
            name="the small one that comes along" if model is None else None,
            max_new_tokens=max_new_tokens,
            advance=lambda label: status.update(f"running {label}"),
        )
        status.update("drawing")
        try:
            written = _write(found, out, png, mp4)
        except OSError as e:
            raise ConfigError(f"cannot write: {e}") from e
    for label, why in found.skipped:
        typer.echo(f"warning: {label} was left out: {why}", err=True)
    if as_json:
        return emit({**found.to_dict(), "files": [str(p) for p in written]})
    return typer.echo("\n".join(map(str, written)))


def _check_targets(out: Path | None, png: Path | None, mp4: Path | None) -> None:
    """Raise ConfigError unless the files can be written where they are wanted.

    Raises:
        MissingExtraError: a package that draws them is not installed.
    """
    needed = [("jinja2", "the page", out), ("matplotlib", "a picture or video", png or mp4)]
    for package, what, wanted in needed:
        if wanted is not None and find_spec(package) is None:
            raise MissingExtraError(f"{what} needs {package}: pip install 'earlytom[report]'")
    for option, path, suffixes in (("--out", out, (".html", ".htm")), ("--mp4", mp4, (".mp4",))):
        if path is None:
            continue
        if path.suffix.lower() not in suffixes:
            raise ConfigError(f"{option} must end in {suffixes[0]}, got {path.name!r}")
        if path.is_dir():
            raise ConfigError(f"{option} names a folder: {path}")
    for path in (out, mp4, png):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"no such folder: {path.parent}")
    if png is not None and png.exists() and not png.is_dir():
        raise ConfigError(f"--png must name a folder, got the file {png}")


def _write(found: Inspection, out: Path | None, png: Path | None, mp4: Path | None) -> list[Path]:
    """Write what was asked for and return the paths."""
    from earlytom.files import write_text
    from earlytom.inspect import render_page
    from earlytom.inspect.paint import write_overlay_video, write_pictures

    written = []
    if out is not None:
        write_text(out, render_page(found))
        written.append(out)
    if png is not None:
        written += write_pictures(found, png)
    if mp4 is not None:
        write_overlay_video(found, mp4)
        written.append(mp4)
    return written


def _methods(
    name: str,
    compare: str | None,
    ratio: float | None,
    policy: str | None,
    positions: str | None,
    depth: int = 28,
) -> dict[str, Method]:
    """Build the method with its settings, and those to compare at the same ratio.

    Args:
        name: of the method.
        compare: others, with commas.
        ratio: asked for.
        policy: of the method.
        positions: of the method.
        depth: of the language model, to which variants scale.

    Raises:
        ConfigError: unknown method or setting, a value out of range, or ``none`` as method.
    """
    from earlytom.bench.contenders import contenders
    from earlytom.method import method_class
    from earlytom.registry import list_methods

    first = opt.make_method(name, retention_ratio=ratio, policy=policy, positions=positions)
    if first is None:
        raise ConfigError("--method none keeps everything: there is nothing to inspect")
    chosen = {name: first}
    for other in [] if compare is None else [x.strip() for x in compare.split(",")]:
        if not other:
            raise ConfigError(f"--compare has an empty name: {compare!r}")
        same = {"retention_ratio": first.retention_ratio}
        if other in list_methods():
            chosen.setdefault(other, method_class(other).from_settings(same))
        else:
            (found,) = contenders([other])[:1]
            chosen.setdefault(other, found.build(depth, **same))
    return chosen
