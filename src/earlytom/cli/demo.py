"""``earlytom demo``: the shipped model answers questions about generated videos, twice."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import Progress

from earlytom.cli import _options as opt
from earlytom.cli._output import console, emit, guarded, progress_console, quiet


@guarded
def demo(
    clips: Annotated[int, typer.Option("--clips", min=1, help="Videos to generate.")] = 12,
    questions: Annotated[int, typer.Option("--questions", min=1, help="Questions per video.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first video.")] = 0,
    retention_ratio: Annotated[
        float, typer.Option("--retention-ratio", help="Share of visual tokens to keep, in (0, 1].")
    ] = 0.25,
    frames: Annotated[int, typer.Option("--frames", help="Frames per video.")] = 16,
    method: opt.MethodName = "afterimage",
    policy: opt.Policy = None,
    positions: opt.Positions = None,
    model: opt.Model = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    as_json: opt.AsJson = False,
) -> None:
    """Generate videos, ask questions of each with and without compression, and compare."""
    err = progress_console()
    with err.status("loading the model"):
        from earlytom.cli._demo_run import run, summary, summary_table
        from earlytom.pipeline import VideoQA

        quiet()
        wanted = opt.make_method(
            method, retention_ratio=retention_ratio, policy=policy, positions=positions
        )
        qa = VideoQA.load(model, device=device, dtype=dtype)
        wanted = None if wanted is None else opt.fit(wanted, qa.model)
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("asking", total=clips * questions)
        rows = run(qa, wanted, clips, questions, seed, frames, lambda: progress.advance(task))
    result = summary(rows, wanted, seed)
    if as_json:
        return emit(result)
    out = console()
    for part in summary_table(rows, result):
        out.print(part)
    return None
