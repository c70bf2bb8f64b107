"""``earlytom report``: tables, pictures and a leaderboard from a benchmark folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from earlytom.cli import _options as opt
from earlytom.cli._output import console, emit, guarded

if TYPE_CHECKING:
    from earlytom.bench.report import Summary


@guarded
def report(
    folder: Annotated[Path, typer.Argument(help="Benchmark folder, with run files in runs/.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write. Default: the benchmark folder.")
    ] = None,
    reference: Annotated[
        str, typer.Option(help="Label that the other methods are tested against.")
    ] = "earlytom-official",
    split: Annotated[str, typer.Option(help="Split of the main table.")] = "standard",
    type_ratio: Annotated[
        float, typer.Option(help="Retention ratio of the table by question type.")
    ] = 0.1,
    highlight: Annotated[
        list[str] | None,
        typer.Option(help="Label drawn in colour, up to 6 times. Default: by rank."),
    ] = None,
    resamples: Annotated[int, typer.Option(min=1000, help="Bootstrap resamples.")] = 10_000,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Warn about unusable run files and go on.")
    ] = False,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Write pictures.")] = True,
    html: Annotated[bool, typer.Option("--html/--no-html", help="Write leaderboard.html.")] = True,
    as_json: opt.AsJson = False,
) -> None:
    """Compare the runs of a benchmark: report.md, pictures, leaderboard.html, summary.json.

    Model families other than that of the shipped model get a folder of their own with the same.

    Results of `earlytom bench --out` in the same folder become speed.md and pictures.
    """
    from earlytom.bench.report import FORMATS, by_family, load_runs, summarise, write_report
    from earlytom.bench.report.speed import load_speed, write_speed

    speed = load_speed(folder)
    if speed and not (folder / "runs").is_dir():
        files = [str(p) for p in write_speed(speed, folder if out is None else out, None, plots)]
        return emit({"files": files}) if as_json else typer.echo("\n".join(files))
    runs, skipped = load_runs(folder, skip_bad=skip_bad)
    settings: dict[str, Any] = {
        "reference": reference,
        "main_split": split,
        "type_ratio": type_ratio,
        "resamples": resamples,
    }
    (_, own), *rest = by_family(runs).items()
    summary = summarise(own, highlight=highlight or (), skipped=skipped, **settings)
    families = {
        family: summarise(
            some, highlight=[h for h in highlight or () if h in {r.label for r in some}], **settings
        )
        for family, some in rest
    }
    unwanted = {name for name, wanted in (("plots", plots), ("html", html)) if not wanted}
    written = write_report(
        summary, folder if out is None else out, [f for f in FORMATS if f not in unwanted], families
    )
    written += write_speed(speed, folder if out is None else out, summary, plots)
    if as_json:
        others = {family: other.to_dict() for family, other in families.items()}
        files = [str(p) for p in written]
        return emit({**summary.to_dict(), "other_families": others, "files": files})
    for warning in summary.warnings:
        typer.echo(f"warning: {warning}", err=True)
    _show(summary, "")
    for family, other in families.items():
        _show(other, f", {family}")
    for path in written:
        typer.echo(str(path))
    return None


def _show(summary: Summary, of: str) -> None:
    from earlytom.bench.report import text as said

    table = Table("method", box=None, pad_edge=False)
    for ratio in summary.ratios:
        table.add_column(said.ratio_text(ratio), justify="right")
    for label in summary.labels:
        row = []
        for ratio in summary.ratios:
            cell = summary.cell(summary.main_split, label, ratio)
            if cell is None:
                row.append(said.DASH)
            elif cell.status != "done":
                row.append("unreachable")
            else:
                row.append(f"{said.mark(cell)} {said.percent(cell.score)}".strip())
        table.add_row(label, *row)
    shared = console()
    shared.print(f"Accuracy, % of the full model's, split {summary.main_split}{of}")
    shared.print(table)
    if summary.reference in summary.labels:
        shared.print(
            f"{said.BETTER} / {said.WORSE}: significantly better / worse than {summary.reference}"
        )
