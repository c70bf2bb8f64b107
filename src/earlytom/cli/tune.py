"""``earlytom tune``: search for one setting of a method, and check it on held-out clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from earlytom.cli import _options as opt
from earlytom.cli._output import console, emit, guarded, progress_bars, quiet
from earlytom.errors import ConfigError


@guarded
def tune(
    out: Annotated[Path, typer.Option(help="Folder for results; an interrupted search goes on.")],
    method: opt.MethodName = "earlytom",
    ratio: Annotated[
        list[float] | None,
        typer.Option("--ratio", help="Retention ratio; repeat. Default: 0.1, 0.15, 0.2, 0.25."),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", help="name=value,value: values to search; lists as [1,4]. Repeat."),
    ] = None,
    grid_only: Annotated[
        bool, typer.Option("--grid-only", help="Leave the built-in space out.")
    ] = False,
    fixed: Annotated[
        list[str] | None,
        typer.Option("--set", help="name=value for all candidates and the default. Repeat."),
    ] = None,
    max_encoder: Annotated[
        float | None, typer.Option(help="Most encoder FLOPs, as a share of the full encoder's.")
    ] = None,
    max_flops: Annotated[
        float | None, typer.Option(help="Most FLOPs at any ratio, as a share of the full model's.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="Kind of clips; repeat. Default: standard.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the search's clips.")] = 0,
    questions: Annotated[int, typer.Option(min=1, help="Of every split, for the search.")] = 600,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates of the first round.")] = 48,
    rungs: Annotated[int, typer.Option(min=1, help="Rounds; 1 is a random search.")] = 3,
    eta: Annotated[float, typer.Option(help="Clips grow, candidates shrink by this.")] = 3.0,
    held_out_seed: Annotated[int, typer.Option(min=0, help="Chooses the check's clips.")] = 2,
    held_out_questions: Annotated[
        int, typer.Option(min=1, help="Of every split, for the check.")
    ] = 1200,
    per_ratio: Annotated[
        bool, typer.Option("--per-ratio/--no-per-ratio", help="Check the best of every ratio too.")
    ] = True,
    resamples: Annotated[int, typer.Option(min=1000, help="Bootstrap resamples.")] = 10_000,
    model: Annotated[Path | None, typer.Option(help="Model folder; default: built in.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one CPU thread each.")] = 1,
    as_json: opt.AsJson = False,
) -> None:
    """Search for ONE setting of a METHOD over all ratios, within a limit on operations."""
    from earlytom.bench.tune import Limits, TuneConfig, parse_grid
    from earlytom.bench.tune import tune as run

    config = TuneConfig(
        method=method,
        ratios=tuple(ratio) if ratio else TuneConfig.ratios,
        splits=tuple(split) if split else TuneConfig.splits,
        grid=_named(parse_grid(text) for text in grid or ()),
        grid_only=grid_only,
        fixed=_single(_named(parse_grid(text) for text in fixed or ())),
        limits=Limits(max_encoder, max_flops),
        seed=seed,
        questions=questions,
        candidates=candidates,
        rungs=rungs,
        eta=eta,
        held_out_seed=held_out_seed,
        held_out_questions=held_out_questions,
        per_ratio=per_ratio,
        resamples=resamples,
    )
    quiet()
    with progress_bars(14) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        result = run(config, out, model, workers, report)
    if as_json:
        return emit(result)
    return _show(result, out)


def _named(pairs: Any) -> dict[str, tuple[Any, ...]]:
    """Collect name and values; a name may come once."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, values in pairs:
        if name in found:
            raise ConfigError(f"{name} is given twice; list all values in one, as name=a,b")
        found[name] = values
    return found


def _single(values: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    for name, several in values.items():
        if len(several) != 1:
            raise ConfigError(f"--set takes one value, got {len(several)} for {name}; use --grid")
    return {name: several[0] for name, several in values.items()}


def _show(result: dict[str, Any], out: Path) -> None:
    check, found = result["held_out"], result["search"]
    per_ratio = "per_ratio" in check["mean"]
    table = Table(box=None, pad_edge=False)
    table.add_column("ratio")
    for name in ("default", "tuned", "gain (95 %)", *(["tuned per ratio"] if per_ratio else [])):
        table.add_column(name, justify="right")
    table.add_column("encoder FLOPs", justify="right")
    for row in [*check["ratios"], check["mean"]]:
        ratio = f"{row['retention_ratio']:g}" if "retention_ratio" in row else "mean"
        best = [f"{100 * row['per_ratio']:.1f}"] if per_ratio else []
        spent = ""
        if "tuned_cost" in row:
            costs = (row["default_cost"]["encoder"], row["tuned_cost"]["encoder"])
            spent = " -> ".join(f"{100 * c:.1f} %" for c in costs)
        cells = [f"{100 * row['default']:.1f}", f"{100 * row['tuned']:.1f}", _gain(row["gain"])]
        table.add_row(ratio, *cells, *best, spent)
    shown = console()
    shown.print(
        f"Searched {len(result['candidates_tried'])} settings on {found['clips']} clips (seed "
        f"{found['seed']}); accuracy on {check['clips']} held-out clips (seed {check['seed']}, "
        f"{check['questions']} questions), full model {100 * check['full']:.1f}"
    )
    shown.print(table)
    reference = result["candidates_tried"][check["reference"]]
    if reference["settings"]:
        told = ", ".join(f"{k}={v!r}" for k, v in reference["settings"].items())
        shown.print(f"default: with {told}, because of the limit")
    elif reference["out"]:
        shown.print(f"The default is over the limit: {reference['out']}")
    if result["winner"]["name"] == check["reference"]:
        shown.print("Nothing within the limits was better than the default.")
    settings = {**result["fixed"], **result["winner"]["settings"]}
    call = "".join(f", {name}={value!r}" for name, value in settings.items())
    typer.echo(f'load_method("{result["method"]}", retention_ratio=...{call})')
    for name in ("compression_config.json", "tuning.json"):
        typer.echo(str(out / name))


def _gain(estimate: dict[str, float]) -> str:
    value, low, high = (100 * estimate[k] for k in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
