"""A result as plain text: rows of strings for any kind of table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SCHEMA = 1  # of a result
STAGES = {
    "vision": "vision encoding",
    "tokens": "token processing",
    "prefill": "LLM prefill",
    "rest": "rest",
}
_SHOWN = ("vision", "tokens", "prefill", "ttft")
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # header, rows


def summary(data: Mapping[str, Any]) -> Table:
    """Return header and one row per case.

    Times are medians. ``speed`` is that of the first token, ``flops`` what the operations
    promise; ``extra`` is work that the plain model does not do, as a share of its time to first
    token; ``MiB`` is the most that was allocated at a time.
    """
    full = data["cases"][0]
    first, shown = stage_columns(data)
    lines = []
    for case in data["cases"]:
        over = case["overhead_s"]["median"] / full["seconds"]["ttft"]["median"]
        memory = f"{case['memory']['allocated_mib']:.0f}"
        lines.append((*shown(case), f"{over:.1%}", memory))
    return (*first, "extra", "MiB"), lines


def stage_columns(
    data: Mapping[str, Any],
) -> tuple[tuple[str, ...], Callable[[Mapping[str, Any]], tuple[str, ...]]]:
    """Return the columns that all tables begin with: their names, and a function from case to row.

    All times are in the unit that suits the slowest.
    """
    slowest = max(case["seconds"]["ttft"]["median"] for case in data["cases"])
    unit, factor, digits = ("s", 1, 2) if slowest >= 10 else ("ms", 1000, 1 if slowest < 1 else 0)
    names = ("vision", "tokens", "prefill", f"TTFT {unit}")

    def row(case: Mapping[str, Any]) -> tuple[str, ...]:
        times = (case["seconds"][name]["median"] * factor for name in _SHOWN)
        return (
            case["label"],
            f"{case['retention_ratio']:.0%}",
            *(f"{t:.{digits}f}" for t in times),
            f"{case['ttft_speedup']['median']:.2f}x",
            f"{case['flops_speedup']:.2f}x",
        )

    return ("method", "ratio", *names, "speed", "flops"), row


def headline(data: Mapping[str, Any]) -> str:
    """Say in one line what was run on what."""
    around, model = data["environment"], data["model"]
    return (
        f"{model['name']} ({model['weights']} weights), {data['frames']} frames, batch "
        f"{data['batch']}, {around['device']} ({around['cpu']}, {around['threads']} threads), "
        f"{around['dtype']}, {around['attention']}, torch {around['torch']}, transformers "
        f"{around['transformers']}, {data['repeats']} interleaved repeats"
    )
