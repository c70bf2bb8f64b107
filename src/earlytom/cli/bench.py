"""``earlytom bench``: time to first token by stage, with and without compression."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from earlytom.cli import _options as opt
from earlytom.cli._lists import names, numbers, whole_numbers
from earlytom.cli._output import console, emit, guarded, progress_bars, quiet
from earlytom.errors import ConfigError

if TYPE_CHECKING:
    from earlytom.bench.speed.cases import Schedule


@guarded
def bench(
    model: Annotated[
        str | None, typer.Option("--model", help="Checkpoint folder or Hub id, instead of --arch.")
    ] = None,
    arch: Annotated[
        str,
        typer.Option(
            help="Architecture: tiny (the shipped model), or llava-onevision-0.5b, "
            "llava-onevision-7b, llava-video-7b, qwen2.5-vl-7b with random weights."
        ),
    ] = "tiny",
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Read only the configuration, draw the weights."),
    ] = False,
    methods: Annotated[
        str, typer.Option(help="Methods or their variants, separated by commas.")
    ] = "earlytom,afterimage",
    ratios: Annotated[str, typer.Option(help="Retention ratios, separated by commas.")] = "",
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a video.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences of a call.")] = 1,
    attn: Annotated[
        str | None, typer.Option(help="Attention of both sides: sdpa, eager, flash_attention_2.")
    ] = None,
    merge_schedule: Annotated[
        str | None,
        typer.Option(help="Frames left in the encoder for earlytom, e.g. 24,18,14."),
    ] = None,
    merge_layers: Annotated[
        str | None, typer.Option(help="Layers after which they are left, e.g. 10,21,23.")
    ] = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of every case.")] = 5,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    nvtx: Annotated[bool, typer.Option("--nvtx", help="Open NVTX ranges, for Nsight.")] = False,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper", help="EarlyTom's protocol: 32 frames, 25 to 10 %, beside published times."
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Benchmark folder; writes speed/NAME.json there.")
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Time the full model and every method in turn, in one process."""
    import torch
    from rich.table import Table

    from earlytom.bench.speed import paper as published
    from earlytom.bench.speed import tables
    from earlytom.bench.speed.run import SpeedPlan, run_speed, save

    quiet()
    if threads is not None:
        torch.set_num_threads(threads)
    wanted = numbers(ratios) if ratios else ((0.25, 0.2, 0.15, 0.1) if paper else (0.25, 0.1))
    plan = SpeedPlan(
        model=model,
        arch=arch,
        random_weights=random_weights,
        methods=names(methods),
        ratios=wanted,
        frames=32 if paper and frames is None else frames,
        batch=batch,
        attn=attn,
        schedule=_schedule(merge_schedule, merge_layers),
        device=device,
        dtype=dtype,
        repeats=repeats,
        new_tokens=new_tokens,
        nvtx=nvtx,
    )
    with progress_bars(24) as bars:
        task = bars.add_task("load", total=None)
        data = run_speed(
            plan,
            lambda what, done, of: bars.update(task, description=what, completed=done, total=of),
        )
    path = None if out is None else save(data, out)
    if as_json:
        return emit(data | {"file": None if path is None else str(path)})
    header, lines = published.beside(data) if paper else tables.summary(data)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    shared = console()
    shared.print(tables.headline(data))
    shared.print(table)
    if path is not None:
        typer.echo(str(path))
    return None


def _schedule(frames: str | None, layers: str | None) -> Schedule | None:
    from earlytom.bench.speed.cases import Schedule

    if frames is None:
        if layers is not None:
            raise ConfigError("--merge-layers goes with --merge-schedule, which was not given")
        return None
    return Schedule(whole_numbers(frames), None if layers is None else whole_numbers(layers))
