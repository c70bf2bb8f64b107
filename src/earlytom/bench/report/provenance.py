"""Where the runs of a report come from: models, machines, questions, configurations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from earlytom.bench.report.runs import FULL, Run
from earlytom.bench.report.summary import Split

_MACHINE = ("cpu", "gpu", "device", "threads", "dtype", "torch")


def models(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return what the runs say about every model checkpoint, by name."""
    found = {r.checkpoint: dict(r.model) for r in runs}
    return [found[name] for name in sorted(found)]


def splits(runs: Sequence[Run]) -> list[Split]:
    """Return the splits that have a finished run, by name."""
    found: dict[str, Split] = {}
    for run in runs:
        if run.questions is not None and run.split not in found:
            clips = len(np.unique(run.questions.clip))
            found[run.split] = Split(
                run.split, run.frames, run.seed, clips, len(run.questions.clip)
            )
    return [found[name] for name in sorted(found)]


def types(runs: Sequence[Run], split: str) -> list[str]:
    """Return the question types of a split, by name."""
    run = next(r for r in runs if r.split == split and r.questions is not None)
    assert run.questions is not None
    return sorted(set(run.questions.kind.tolist()))


def environments(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return every distinct environment with its number of ``runs`` and its ``dates``.

    Only dates may differ within one environment.
    """
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        if not run.environment:
            continue
        rest = {k: v for k, v in run.environment.items() if k != "date"}
        entry = found.setdefault(json.dumps(rest, sort_keys=True), {**rest, "runs": 0, "dates": []})
        entry["runs"] += 1
        day = str(run.environment.get("date", ""))[:10]
        if day and day not in entry["dates"]:
            entry["dates"].append(day)
    for entry in found.values():
        entry["dates"].sort()
    return sorted(found.values(), key=lambda e: -int(e["runs"]))


def several_machines(entries: Sequence[dict[str, Any]]) -> bool:
    """Whether anything that measured times depend on differs between environments."""
    return len({tuple(str(e.get(k)) for k in _MACHINE) for e in entries}) > 1


def configs(runs: Sequence[Run], labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return method, positions and settings of every label; the ratio is left out."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.label == FULL or run.label in found or run.config is None:
            continue
        config = {k: v for k, v in run.config.items() if k not in ("method", "retention_ratio")}
        found[run.label] = {
            "method": run.method,
            "positions": run.positions,
            "config": config,
        }
    return {x: found[x] for x in labels if x in found}
