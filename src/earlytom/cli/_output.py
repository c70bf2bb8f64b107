"""What the commands share: consoles, error handling, tables, JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from earlytom.errors import EarlyTomError

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from earlytom.pipeline import Answer

F = TypeVar("F", bound=Callable[..., Any])

_STAGES = (
    ("decode", "decode video"),
    ("preprocess", "preprocess"),
    ("vision", "vision encoding"),
    ("tokens", "token processing"),
    ("prefill", "LLM prefill"),
    ("ttft", "time to first token"),
)


def console() -> Console:
    """Return the console of answers and tables (stdout)."""
    return Console(highlight=False)


def progress_console() -> Console:
    """Return the console of progress and errors (stderr)."""
    return Console(stderr=True, highlight=False)


def progress_bars(width: int, *more: ProgressColumn) -> Progress:
    """Return bars with a description of ``width`` characters, counts and the time that is left."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn(f"{{task.description:<{width}}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        *more,
        console=progress_console(),
    )


def guarded(command: F) -> F:
    """Turn errors of this package into one line and exit code 1, Ctrl-C into exit code 130.

    With the command's ``as_json`` set, the error is also written to stdout as ``{"error": ...}``.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except EarlyTomError as e:
            if kwargs.get("as_json"):
                emit({"error": str(e)})
            typer.echo(f"error: {e}", err=True)
            raise typer.Exit(1) from e
        except KeyboardInterrupt as e:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from e

    return run  # type: ignore[return-value]


def emit(data: Any) -> None:
    """Write ``data`` to stdout as JSON."""
    typer.echo(json.dumps(data, indent=2, allow_nan=False))


def quiet() -> None:
    """Silence transformers' own progress bars and hints for this process."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def seconds(value: float | None) -> str:
    """Format a duration."""
    if value is None:
        return "-"
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def answer_table(columns: Sequence[tuple[str, Answer]]) -> Table:
    """Return the table of one answer, or of two side by side with the change."""
    first, last = columns[0][1], columns[-1][1]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name, _ in columns:
        table.add_column(name, justify="right")
    compare = len(columns) > 1
    if compare:
        table.add_column("change", justify="right")
    a, b = first.timings.to_dict(), last.timings.to_dict()
    for key, label in _STAGES:
        cells = [seconds(c.timings.to_dict()[key]) for _, c in columns]
        table.add_row(label, *cells, *([times(a[key], b[key])] if compare else []))
    rates = [c.timings.decode_tokens_per_s for _, c in columns]
    cells = ["-" if r is None else f"{r:.0f} /s" for r in rates]
    table.add_row("new tokens", *cells, *([times(rates[-1], rates[0])] if compare else []))
    for label, name in (
        ("frames", "frames"),
        ("patches encoded", "patches"),
        ("visual tokens", "tokens"),
    ):
        cells = [_change(getattr(c, f"{name}_in"), getattr(c, f"{name}_out")) for _, c in columns]
        share = getattr(last, f"{name}_out") / getattr(last, f"{name}_in")
        table.add_row(label, *cells, *([f"{share:.1%}"] if compare else []))
    return table


def times(before: float | None, after: float | None) -> str:
    """Format how many times faster ``after`` is."""
    return f"{before / after:.2f}x" if before and after else "-"


def _change(before: int, after: int) -> str:
    return f"{before}" if before == after else f"{before} -> {after}"
