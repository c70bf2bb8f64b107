"""``earlytom ask``: one question about one video."""

from __future__ import annotations

import dataclasses
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from earlytom.cli import _options as opt
from earlytom.cli._output import (
    answer_table,
    console,
    emit,
    guarded,
    progress_console,
    quiet,
)

if TYPE_CHECKING:
    from earlytom.method import Method
    from earlytom.pipeline import Answer, VideoQA
    from earlytom.video import Video


@guarded
def ask(
    video: Annotated[str, typer.Argument(help="Video file.", show_default=False)],
    question: Annotated[str, typer.Argument(help="Question about it.", show_default=False)],
    model: opt.Model = None,
    method: opt.MethodName = "afterimage",
    retention_ratio: opt.Ratio = None,
    frames: opt.Frames = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Sample this many frames per second instead.")
    ] = None,
    policy: opt.Policy = None,
    positions: opt.Positions = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Permit an http(s) URL as VIDEO.")
    ] = False,
    frames_per_chunk: Annotated[
        int | None,
        typer.Option(
            "--frames-per-chunk",
            min=0,
            help="Frames to encode at a time, which bounds memory; 0: all. Default: 32 if there "
            "are more than 64.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Length limit of the answer.")
    ] = 64,
    compare: Annotated[
        bool, typer.Option("--compare", help="Run the uncompressed model beside it.")
    ] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Answer a QUESTION about a VIDEO and show where the time went."""
    progress = progress_console()
    with progress.status("checking the video"):
        from earlytom.video import load_video
        from earlytom.video.sampling import Sampling
        from earlytom.video.source import check_source

        Sampling(frames, fps)  # refuse bad requests before the model is loaded
        check_source(video, allow_http)
        wanted = opt.make_method(
            method, retention_ratio=retention_ratio, policy=policy, positions=positions
        )
    with progress.status("loading the model"):
        from earlytom.pipeline import VideoQA

        quiet()
        qa = VideoQA.load(model, device=device, dtype=dtype)
    wanted = None if wanted is None else opt.fit(wanted, qa.model)
    if not compare:
        write = None if as_json else typer.echo
        answer = qa.ask(
            video,
            question,
            wanted,
            frames=frames,
            fps=fps,
            allow_http=allow_http,
            frames_per_chunk=frames_per_chunk,
            max_new_tokens=max_new_tokens,
            stream=None if write is None else lambda text: write(text, nl=False),
        )
        if as_json:
            return emit({"question": question, **answer.to_dict()})
        typer.echo("\n")
        return console().print(answer_table([(method, answer)]))
    with progress.status("running both"):
        count = qa.frames if frames is None and fps is None else frames
        start = perf_counter()
        loaded = load_video(video, count, fps=fps, allow_http=allow_http)
        decode = perf_counter() - start
        both = _both(qa, loaded, question, wanted, frames_per_chunk, max_new_tokens)
        pair = [_with_decode(a, decode) for a in both]
    if as_json:
        return emit(
            {
                "question": question,
                "full": pair[0].to_dict(),
                "compressed": pair[1].to_dict(),
                "ttft_speedup": pair[0].timings.ttft / pair[1].timings.ttft,
            }
        )
    out = console()
    out.print(f"full: {pair[0].text}\n{method}: {pair[1].text}\n", markup=False)
    return out.print(answer_table([("full", pair[0]), (method, pair[1])]))


def _with_decode(answer: Answer, seconds: float) -> Answer:
    timings = dataclasses.replace(
        answer.timings, decode=seconds, total=answer.timings.total + seconds
    )
    return dataclasses.replace(answer, timings=timings)


def _both(
    qa: VideoQA,
    video: Video,
    question: str,
    method: Method | None,
    chunk: int | None,
    max_new_tokens: int,
) -> tuple[Answer, Answer]:
    """Return the uncompressed and the compressed answer; one warm-up each comes before."""
    answers = [
        qa.ask(video, question, m, frames_per_chunk=chunk, max_new_tokens=n)
        for n in (1, max_new_tokens)
        for m in (None, method)
    ]
    return answers[2], answers[3]
