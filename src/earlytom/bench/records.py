"""Run files: one JSON file per model, split, contender and ratio.

The columns under ``questions`` have one entry per question, in an order that is the same in all
runs of a split and seed, so runs are paired by position; ``clip`` is the unit of resampling.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from earlytom.bench.contenders import FULL, Entry
from earlytom.bench.suite import SuiteClip
from earlytom.files import write_text

SCHEMA = 1
DONE, UNREACHABLE = "done", "unreachable"


@dataclass(frozen=True)
class Task:
    """One run: an entry on a split.

    Attributes:
        entry: the contender at one ratio.
        split: name of the split.
        frames: frames of its clips.
        seed: of the split.
        questions: number of questions asked for, None for the split's own.
        model: what the record says about the model.
    """

    entry: Entry
    split: str
    frames: int
    seed: int
    questions: int | None
    model: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Changes whenever the run would be another one."""
        method = self.entry.method
        what = {
            "schema": SCHEMA,
            "model": self.model["sha256"],
            "split": self.split,
            "seed": self.seed,
            "questions": self.questions,
            "label": self.entry.label,
            "retention_ratio": self.entry.retention_ratio,
            "config": None if method is None else method.to_dict(),
            "error": self.entry.error,
        }
        text = json.dumps(what, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def path(self, folder: Path) -> Path:
        """Where its file is."""
        ratio = self.entry.retention_ratio
        shown = f"{ratio:.2f}" if round(ratio, 2) == ratio else f"{ratio:g}"
        name = f"{self.entry.label}@{shown}.json"
        return folder / "runs" / str(self.model["name"]) / self.split / name

    def state(self, folder: Path) -> tuple[str, str | None] | None:
        """Status and note of the file of exactly this run, None if it is not there."""
        try:
            data = json.loads(self.path(folder).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(data, dict) or data.get("fingerprint") != self.fingerprint:
            return None
        return str(data.get("status")), data.get("note")


@dataclass(frozen=True)
class Outcome:
    """What one run did on one clip; JSON-ready through ``vars``.

    Attributes:
        correct: per question, 1 if the best of the candidates was the answer.
        open: per question, 1 if the best word of the whole vocabulary was an answer.
        retention: visual tokens that entered the language model / those without compression.
        llm_retention: the same averaged over its layers.
        frames_out: frames left behind the encoder.
        flops: encoder, projector and language model (mean per question), and the encoder's without
            compression.
        seconds: spent on this clip by this run.
        timed: seconds (encode, answer) of a plain call, or None if this clip was not timed.
        peak_rss_mib: largest memory of the process during that call, or None.
    """

    correct: list[int]
    open: list[int]
    retention: float
    llm_retention: float
    frames_out: int
    flops: tuple[float, float, float, float]
    seconds: float
    timed: tuple[float, float] | None = None
    peak_rss_mib: float | None = None


def save_unreachable(task: Task, folder: Path, error: str, environment: dict[str, Any]) -> None:
    """Write the record of an entry whose ratio cannot be reached."""
    record = _head(task, UNREACHABLE, error, environment)
    _write(task.path(folder), record)


def save_done(
    task: Task,
    folder: Path,
    clips: Sequence[SuiteClip],
    outcomes: Sequence[Outcome],
    environment: dict[str, Any],
) -> dict[str, Any]:
    """Write the record of a finished run, with one outcome per clip, and return it."""
    clip = [c.number for c in clips for _ in c.questions]
    kind = [q.type for c in clips for q in c.questions]
    correct = [v for o in outcomes for v in o.correct]
    opened = [v for o in outcomes for v in o.open]
    asked = np.array([len(c.questions) for c in clips])
    encoder, projector, llm, encoder_full = (
        np.array([o.flops[i] for o in outcomes], dtype=float) for i in range(4)
    )
    total = {
        "encoder": float((encoder * asked).sum() / asked.sum()),
        "projector": float((projector * asked).sum() / asked.sum()),
        "llm": float((llm * asked).sum() / asked.sum()),
    }
    timed = [o.timed for o in outcomes if o.timed is not None]
    peaks = [o.peak_rss_mib for o in outcomes if o.peak_rss_mib is not None]
    record = _head(task, DONE, task.entry.note, environment) | {
        "questions": {"clip": clip, "type": kind, "correct": correct, "open": opened},
        "accuracy": float(np.mean(correct)),
        "open_accuracy": float(np.mean(opened)),
        "accuracy_by_type": _by_type(kind, correct),
        "open_accuracy_by_type": _by_type(kind, opened),
        "achieved": {
            "retention": float(np.mean([o.retention for o in outcomes])),
            "llm_retention": float(np.mean([o.llm_retention for o in outcomes])),
            "frames_out": float(np.mean([o.frames_out for o in outcomes])),
            "encoder_compute": float(encoder.sum() / encoder_full.sum()),
        },
        "flops": total | {"total": sum(total.values())},
        "time": {
            "encode_s": quartiles([t[0] for t in timed]),
            "answer_s": quartiles([t[1] for t in timed]),
            "timed_clips": len(timed),
            "wall_s": sum(o.seconds for o in outcomes),
        },
        "memory": {"peak_rss_mib": max(peaks) if peaks else None},
    }
    _write(task.path(folder), record)
    return record


def _head(task: Task, status: str, note: str | None, environment: dict[str, Any]) -> dict[str, Any]:
    method = task.entry.method
    positions = None
    if method is not None:  # models with several axes keep positions where methods would not
        positions = task.entry.positions or method.resolved_positions()
    return {
        "schema": SCHEMA,
        "status": status,
        "note": note,
        "fingerprint": task.fingerprint,
        "model": task.model,
        "split": task.split,
        "frames": task.frames,
        "seed": task.seed,
        "limit": task.questions,
        "label": task.entry.label,
        "method": None if task.entry.label == FULL else task.entry.name,
        "config": None if method is None else method.to_dict(),
        "retention_ratio": task.entry.retention_ratio,
        "positions": positions,
        "environment": environment | {"date": datetime.datetime.now().isoformat("T", "seconds")},
    }


def _by_type(kind: Sequence[str], values: Sequence[int]) -> dict[str, float]:
    asked, right = Counter(kind), Counter[str]()
    for k, v in zip(kind, values, strict=True):
        right[k] += v
    return {k: right[k] / n for k, n in asked.items()}


def quartiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return ``median``, ``q1`` and ``q3``, None without values."""
    if not values:
        return None
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "q1": float(q1), "q3": float(q3)}


def _write(path: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record, allow_nan=False) + "\n"
    write_text(path, text)
