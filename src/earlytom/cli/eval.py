"""``earlytom eval``: what every method keeps of the accuracy, on splits of generated clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from earlytom.cli import _options as opt
from earlytom.cli._lists import names, numbers
from earlytom.cli._output import console, emit, guarded, progress_bars, quiet

if TYPE_CHECKING:
    from rich.table import Table

    from earlytom.bench.runner import Result

_KEPT = (
    "model split label method retention_ratio note positions accuracy open_accuracy "
    "accuracy_by_type open_accuracy_by_type achieved flops time memory"
)


@guarded
def evaluate(
    model: Annotated[
        Path | None, typer.Option(help="Folder of a tiny model. Default: the shipped one.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Methods or their variants, separated by commas, or all.")
    ] = "all",
    ratios: Annotated[
        str, typer.Option(help="Retention ratios, separated by commas.")
    ] = "0.25,0.2,0.15,0.1,0.05",
    tasks: Annotated[
        str, typer.Option(help="Splits: standard, long, static, motion, detail, or all.")
    ] = "all",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Questions per split, the same number of every type."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the clips.")] = 1,
    positions: Annotated[
        str, typer.Option(help="Where survivors stand: auto, renumber, keep or respace.")
    ] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the run files.")] = Path("earlytom-eval"),
    workers: Annotated[int, typer.Option(min=1, help="Processes, one CPU thread each.")] = 1,
    as_json: opt.AsJson = False,
) -> None:
    """Compare methods by accuracy on generated clips; `earlytom report` reads what this writes.

    Finished runs are kept: the same command goes on where it was interrupted.
    """
    from earlytom.bench.runner import Plan, compare
    from earlytom.bench.suite import SPLITS

    quiet()
    plan = Plan(
        out=out,
        model=model,
        methods=names(methods),
        ratios=numbers(ratios),
        splits=tuple(SPLITS) if tasks == "all" else names(tasks),
        questions=limit,
        seed=seed,
        positions=positions,
        workers=workers,
    )
    with progress_bars(16) as bars:
        runs, clips = bars.add_task("runs", total=None), bars.add_task("clips", total=None)

        def show(split: str, done: int, total: int, seen: int, of: int) -> None:
            bars.update(runs, completed=done, total=total)
            bars.update(clips, completed=seen, total=of, description=f"clips: {split}")

        result = compare(plan, show)
    if as_json:
        emit(_summary(result, out))
    else:
        for table in _tables(result):
            console().print(table)
        for split, label, ratio, why in result.unreachable:
            typer.echo(f"unreachable: {label} at {ratio:g} on {split}: {why}", err=True)
        typer.echo(f"{len(result.files)} runs in {out}")
    for split, label, ratio, why in result.broken:
        typer.echo(f"failed: {label} at {ratio:g} on {split}: {why}", err=True)
    if result.broken:
        raise typer.Exit(1)


def _records(result: Result) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in result.files]


def _summary(result: Result, out: Path) -> dict[str, Any]:
    """What is written to stdout as JSON: the runs without their single questions."""
    kept = _KEPT.split()
    lost = ("split", "label", "retention_ratio", "reason")
    return {
        "out": str(out),
        "runs": [
            {k: r[k] for k in kept} | {"questions": len(r["questions"]["clip"])}
            for r in _records(result)
        ],
        "written": len(result.written),
        "found": len(result.found),
        "unreachable": [dict(zip(lost, u, strict=True)) for u in result.unreachable],
        "failed": [dict(zip(lost, b, strict=True)) for b in result.broken],
    }


def _tables(result: Result) -> list[Table]:
    """One table per split: accuracy, and in brackets that of freely written answers."""
    from rich.table import Table

    by_split: dict[str, dict[str, dict[float, str]]] = {}
    for r in _records(result):
        cell = f"{100 * r['accuracy']:.1f} ({100 * r['open_accuracy']:.1f})"
        rows = by_split.setdefault(r["split"], {})
        rows.setdefault(r["label"], {})[r["retention_ratio"]] = cell
    tables = []
    for split, rows in by_split.items():
        ratios = sorted({ratio for cells in rows.values() for ratio in cells}, reverse=True)
        table = Table(split, *(f"{ratio:g}" for ratio in ratios), box=None, pad_edge=False)
        for label, cells in rows.items():
            table.add_row(label, *(cells.get(ratio, "-") for ratio in ratios))
        tables.append(table)
    return tables
