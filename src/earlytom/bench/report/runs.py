"""Reading the run files of a benchmark folder, strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from earlytom.errors import ResultError
from earlytom.tiny.config import DEFAULT_ARCH

SCHEMA = 1
FULL = "full"
STATUSES = ("done", "unreachable")
T = TypeVar("T")


@dataclass(frozen=True)
class Questions:
    """What one run answered, one entry per question, in the order of its split.

    Attributes:
        clip: ``[n]`` int64, number of the clip; the unit of resampling.
        kind: ``[n]`` str, question type.
        correct: ``[n]`` int8, 1 if the best of the four candidates was the answer.
        open: ``[n]`` int8, 1 if the best word of the whole vocabulary was; None if not asked.
    """

    clip: NDArray[np.int64]
    kind: NDArray[np.str_]
    correct: NDArray[np.int8]
    open: NDArray[np.int8] | None

    def same_as(self, other: Questions) -> bool:
        """Whether both asked the same questions about the same clips in the same order."""
        return np.array_equal(self.clip, other.clip) and np.array_equal(self.kind, other.kind)


@dataclass(frozen=True)
class Run:
    """One run file. ``questions`` is None for an unreachable run.

    ``seconds`` holds the medians ``encode`` (per clip) and ``answer`` (per question); ``flops`` is
    counted as 2 x multiply-adds per question. Values that were not measured are missing.
    """

    file: Path
    model: Mapping[str, Any]
    split: str
    frames: int
    seed: int
    label: str
    method: str | None
    config: Mapping[str, Any] | None
    ratio: float
    positions: str | None
    status: str
    note: str | None
    questions: Questions | None
    achieved: Mapping[str, float] = field(default_factory=dict)
    flops: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> str:
        """Name of the model checkpoint."""
        return str(self.model["name"])

    @property
    def family(self) -> str:
        """Model type of the checkpoint; runs that name none are older than the second one."""
        return str(self.model.get("family", DEFAULT_ARCH))

    @property
    def key(self) -> tuple[str, str, str, float]:
        """(checkpoint, split, label, ratio): unique in a folder."""
        return self.checkpoint, self.split, self.label, self.ratio


def load_runs(folder: Path, *, skip_bad: bool = False) -> tuple[list[Run], list[str]]:
    """Read every ``folder/runs/**/*.json`` (files whose name starts with a dot are left out).

    Returns:
        The runs sorted by path, and with ``skip_bad`` one line for every file left out.

    Raises:
        ResultError: no run files; or, without ``skip_bad``, a file that is broken, is not a run,
            repeats another run, asked other questions than the first run of its model family and
            split, or ran a method with other settings than the first of its label and ratio.
    """
    if not folder.is_dir():
        raise ResultError(f"no such folder: {folder}")
    files = sorted(
        p
        for p in (folder / "runs").rglob("*.json")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    if not files:
        raise ResultError(f"no run files in {folder} (expected runs/MODEL/SPLIT/METHOD@RATIO.json)")
    runs: list[Run] = []
    skipped: list[str] = []
    seen: dict[tuple[str, str, str, float], Run] = {}
    first: dict[tuple[str, str], Run] = {}
    settings: dict[tuple[str, str, float], Run] = {}
    for file in files:
        try:
            run = read_run(file)
            _check_fits(run, seen, first)
            _check_settings(run, settings)
        except ResultError as e:
            if not skip_bad:
                raise
            skipped.append(str(e))
            continue
        runs.append(run)
        seen[run.key] = run
        if run.questions is not None:
            first.setdefault((run.family, run.split), run)
            settings.setdefault((run.family, run.label, run.ratio), run)
    if not runs:
        raise ResultError(f"no usable run file in {folder}: {skipped[0]}")
    return runs, skipped


def by_family(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of every model family; the one that the package ships comes first."""
    families = sorted({r.family for r in runs}, key=lambda f: (f != DEFAULT_ARCH, f))
    return {name: [r for r in runs if r.family == name] for name in families}


def _check_fits(run: Run, seen: Mapping[Any, Run], first: Mapping[tuple[str, str], Run]) -> None:
    twin = seen.get(run.key)
    if twin is not None:
        raise ResultError(f"{run.file}: the same run as {twin.file}")
    head = first.get((run.family, run.split))
    if run.questions is None or head is None or head.questions is None:
        return
    if (run.seed, run.frames) != (head.seed, head.frames) or not run.questions.same_as(
        head.questions
    ):
        raise ResultError(
            f"{run.file}: other questions than {head.file}; runs of one split must share seed, "
            "frames and questions"
        )


def _check_settings(run: Run, first: Mapping[tuple[str, str, float], Run]) -> None:
    """A cell is a mean over checkpoints: of one and the same method."""
    head = first.get((run.family, run.label, run.ratio))
    if run.questions is None or head is None:
        return
    mine, other = run.config or {}, head.config or {}
    differ = sorted(k for k in {*mine, *other} if mine.get(k) != other.get(k))
    if differ:
        raise ResultError(
            f"{run.file}: other settings than {head.file} ({', '.join(differ)}); runs of one label "
            "must share them, so run the older one again"
        )


def read_run(file: Path) -> Run:
    """Read and check one run file.

    Raises:
        ResultError: the file cannot be read, is not JSON, is not a run of this schema, or
            contradicts itself. The message starts with the path.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as e:
        raise ResultError(f"{file}: not readable as JSON ({str(e).splitlines()[0]})") from e
    try:
        return _parse(file, data)
    except _Bad as e:
        raise ResultError(f"{file}: {e}") from e


class _Bad(Exception):
    """Internal: what is wrong inside a file."""


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _parse(file: Path, data: Any) -> Run:
    if not isinstance(data, dict) or "schema" not in data or "label" not in data:
        raise _Bad("not a benchmark run (no schema or no label)")
    if data["schema"] != SCHEMA:
        raise _Bad(f"schema {data['schema']!r}; this version reads schema {SCHEMA}")
    status = _get(data, "status", str)
    if status not in STATUSES:
        raise _Bad(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
    model = _get(data, "model", dict)
    _get(model, "name", str)
    label = _get(data, "label", str)
    ratio = _number(data, "retention_ratio")
    if not 0 < ratio <= 1:
        raise _Bad(f"retention_ratio must be in (0, 1], got {ratio}")
    if label == FULL and ratio != 1:
        raise _Bad(f"label {FULL!r} must have retention_ratio 1, got {ratio}")
    questions = _questions(data) if status == "done" else None
    return Run(
        file=file,
        model=model,
        split=_get(data, "split", str),
        frames=_get(data, "frames", int),
        seed=_get(data, "seed", int),
        label=label,
        method=_optional(data, "method", str),
        config=_optional(data, "config", dict),
        ratio=round(ratio, 6),
        positions=_optional(data, "positions", str),
        status=status,
        note=_optional(data, "note", str) or None,
        questions=questions,
        achieved=_numbers(data, "achieved"),
        flops=_numbers(data, "flops"),
        seconds=_seconds(data),
        memory=_numbers(data, "memory"),
        environment=_optional(data, "environment", dict) or {},
    )


def _questions(data: Mapping[str, Any]) -> Questions:
    columns = _get(data, "questions", dict)
    clip = _column(columns, "clip", lambda v: isinstance(v, int), "integers")
    kind = _column(columns, "type", lambda v: isinstance(v, str), "names")
    correct = _column(columns, "correct", _is_bit, "0 or 1")
    written = None
    if columns.get("open") is not None:
        written = _column(columns, "open", _is_bit, "0 or 1")
    lengths = {len(c) for c in (clip, kind, correct, written) if c is not None}
    if len(lengths) != 1 or 0 in lengths:
        raise _Bad(f"columns of questions must be equally long and not empty, got {lengths}")
    result = Questions(
        np.array(clip, np.int64),
        np.array(kind, np.str_),
        np.array(correct, np.int8),
        None if written is None else np.array(written, np.int8),
    )
    _same_mean(data, "accuracy", result.correct)
    if result.open is not None:
        _same_mean(data, "open_accuracy", result.open)
    return result


def _same_mean(data: Mapping[str, Any], key: str, column: NDArray[np.int8]) -> None:
    if data.get(key) is None:
        return
    stated = _number(data, key)
    if abs(stated - float(column.mean())) > 1e-4:
        raise _Bad(f"{key} {stated} contradicts its questions ({column.mean():.4f})")


def _is_bit(value: Any) -> bool:
    return isinstance(value, int) and value in (0, 1)


def _column(
    columns: Mapping[str, Any], key: str, allowed: Callable[[Any], bool], what: str
) -> Sequence[Any]:
    values = columns.get(key)
    if not isinstance(values, list) or not all(allowed(v) for v in values):
        raise _Bad(f"questions.{key} must be a list of {what}")
    return values


def _get(data: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = data.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _Bad(f"{key} must be of type {kind.__name__}, got {value!r:.60}")
    return value


def _optional(data: Mapping[str, Any], key: str, kind: type[T]) -> T | None:
    return None if data.get(key) is None else _get(data, key, kind)


def _number(data: Mapping[str, Any], key: str) -> float:
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Bad(f"{key} must be a finite number, got {value!r:.60}")
    return float(value)


def _numbers(data: Mapping[str, Any], key: str) -> dict[str, float]:
    table = _optional(data, key, dict) or {}
    return {k: _number(table, k) for k, v in table.items() if v is not None}


def _seconds(data: Mapping[str, Any]) -> dict[str, float]:
    table = _optional(data, "time", dict) or {}
    found = {}
    for name in ("encode", "answer"):
        quartiles = _optional(table, f"{name}_s", dict)
        if quartiles and quartiles.get("median") is not None:
            found[name] = _number(quartiles, "median")
    return found
