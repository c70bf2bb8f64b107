"""``earlytom tiny``: train, evaluate and feed the small built-in model."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TextColumn
from rich.table import Table

from earlytom.cli import _options as opt
from earlytom.cli._output import console, emit, guarded, progress_bars, quiet
from earlytom.errors import ConfigError
from earlytom.tiny.config import ARCHITECTURES, DEFAULT_ARCH, TrainConfig

app = typer.Typer(no_args_is_help=True, help="Train, evaluate and feed the built-in tiny model.")


def _progress() -> Progress:
    return progress_bars(16, TextColumn("{task.fields[note]}"))


@app.command()
@guarded
def train(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and the finished model.")],
    arch: Annotated[
        str, typer.Option(help=f"Family of the model: {', '.join(ARCHITECTURES)}.")
    ] = DEFAULT_ARCH,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and data.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoints in --out.")] = True,
    scale: Annotated[
        float, typer.Option(help="Factor on all steps and on the data; 0.01 is a smoke run.")
    ] = 1.0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    compile_: Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile.")] = True,
    save_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds between checkpoints.")
    ] = TrainConfig.save_seconds,
    as_json: opt.AsJson = False,
) -> None:
    """Train a tiny model from scratch (about 1.5 hours on two CPU cores at scale 1)."""
    from earlytom.tiny import TrainingInterrupted
    from earlytom.tiny import train as run

    quiet()
    config = TrainConfig.of(
        arch,
        out,
        seed=seed,
        resume=resume,
        threads=threads,
        compiled=compile_,
        save_seconds=save_seconds,
    )
    try:
        with _progress() as bars:
            tasks: dict[str, Any] = {}

            def report(stage: str, step: int, total: int, note: str) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total, note="")
                bars.update(tasks[stage], completed=step, note=note)

            folder = run(config.scaled(scale), report)
    except TrainingInterrupted as stop:
        typer.echo(str(stop), err=True)
        raise typer.Exit(130) from None
    curve = json.loads((folder / "learning_curve.json").read_text())[-1]
    if as_json:
        emit({"path": str(folder), "steps": curve["step"], "accuracy": curve["accuracy"]})
    else:
        typer.echo(f"{folder}: validation accuracy {100 * curve['accuracy']:.1f} %")


@app.command("eval")
@guarded
def evaluate(
    questions: Annotated[int, typer.Option(min=1, help="At least this many questions.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the clips.")] = 1,
    frames: Annotated[int, typer.Option(help="Frames per clip: 4, 8, 16 or 32.")] = 16,
    model: Annotated[Path | None, typer.Option(help="Model folder; default: built in.")] = None,
    method: opt.MethodName = "none",
    retention_ratio: opt.Ratio = None,
    policy: opt.Policy = None,
    positions: opt.Positions = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    as_json: opt.AsJson = False,
) -> None:
    """Measure the accuracy on held-out clips, by question type, with or without a method."""
    import torch
    from transformers import AutoModelForImageTextToText

    from earlytom.tiny import evaluate as run
    from earlytom.tiny import weights_path

    quiet()
    wanted = opt.make_method(
        method, retention_ratio=retention_ratio, policy=policy, positions=positions
    )
    torch.set_num_threads(threads)
    folder = weights_path() if model is None else model
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} is not a model folder (no config.json)")
    network = AutoModelForImageTextToText.from_pretrained(folder).eval()
    network = network.to("cuda" if torch.cuda.is_available() else "cpu")
    with _progress() as bars:
        task = bars.add_task("evaluating", total=None, note="")
        result = run(
            network,
            questions,
            seed,
            frames,
            context=nullcontext if wanted is None else lambda: wanted(network),
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if as_json:
        used = None if wanted is None else wanted.to_dict()
        emit({"model": str(folder), "method": used, **result.to_dict()})
        return
    table = Table("type", "questions", "accuracy", "question only")
    for kind, accuracy in result.accuracy_by_type.items():
        blind = result.blind_accuracy_by_type[kind]
        count = result.questions_by_type.get(kind, 0)
        table.add_row(kind, str(count), f"{100 * accuracy:.1f}", f"{100 * blind:.1f}")
    blind = sum(result.blind_accuracy_by_type.values()) / len(result.blind_accuracy_by_type)
    table.add_section()
    table.add_row(
        "all", str(result.questions), f"{100 * result.accuracy:.1f}", f"{100 * blind:.1f}"
    )
    console().print(table)
    typer.echo(f"with the video of another clip: {100 * result.wrong_video_accuracy:.1f} %")


@app.command("make-video")
@guarded
def make_video(
    output: Annotated[Path, typer.Argument(help="MP4 file to write; a JSON goes beside it.")],
    seed: Annotated[int, typer.Option(min=0, help="Chooses the clip.")] = 0,
    frames: Annotated[int, typer.Option(help="Clip frames: 4, 8, 16 or 32.")] = 16,
    shots: Annotated[int | None, typer.Option(help="Number of shots; default: drawn.")] = None,
    fps: Annotated[int, typer.Option(help="Video frames per second.")] = 24,
    hold: Annotated[int, typer.Option(help="Video frames per clip frame.")] = 6,
    as_json: opt.AsJson = False,
) -> None:
    """Write a clip as MP4 and its questions with answers as JSON."""
    from earlytom.tiny import write_video

    listing = write_video(output, seed, num_frames=frames, shots=shots, fps=fps, hold=hold)
    record = json.loads(listing.read_text())
    if as_json:
        emit({"path": str(output), "json": str(listing), **record})
        return
    typer.echo(f"{output} ({frames} frames, {record['shots']} shots) and {listing.name}")
    for entry in record["questions"]:
        typer.echo(f"  {entry['question']}  {entry['answer']}")


@app.command("lmms-task")
@guarded
def lmms_task(
    folder: Annotated[Path, typer.Argument(help="Folder for videos, questions and tasks.")],
    clips: Annotated[int, typer.Option(min=1, help="Number of videos.")] = 20,
    questions: Annotated[int, typer.Option(min=1, help="At most this many per video.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first clip.")] = 0,
    frames: Annotated[int, typer.Option(help="Clip frames: 4, 8, 16 or 32.")] = 16,
    as_json: opt.AsJson = False,
) -> None:
    """Write generated videos and two lmms-eval tasks about them (see docs/lmms-eval.md)."""
    from earlytom.tiny import write_lmms_task
    from earlytom.tiny.lmms_task import CHOICE_TASK, TASK

    with _progress() as bars:
        task = bars.add_task("writing", total=clips, note="")
        rows = write_lmms_task(
            folder,
            clips,
            questions=questions,
            seed=seed,
            num_frames=frames,
            progress=lambda done: bars.update(task, completed=done),
        )
    tasks = [TASK, CHOICE_TASK]
    if as_json:
        emit({"path": str(folder), "tasks": tasks, "clips": clips, "questions": len(rows)})
    else:
        typer.echo(f"{folder}: {clips} videos, {len(rows)} questions, tasks {', '.join(tasks)}")
