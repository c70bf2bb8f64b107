"""Measurements of a search in one JSON file, so that an interrupted search goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from earlytom.errors import ResultError
from earlytom.files import write_text

SCHEMA = 1
Job = tuple[str, float]  # candidate, retention ratio
Missing = Iterator[tuple[int, tuple[Job, ...]]]  # clip and jobs; read as it is needed
# yields clips in any order with what the jobs did
Measure = Callable[[Missing], Iterable[tuple[int, Mapping[Job, "Trial"]]]]


@dataclass(frozen=True)
class Trial:
    """What a job did on one clip.

    Attributes:
        correct: one character per question, ``1`` for a right answer, else ``0``.
        encoder: floating point operations of the vision encoder.
        total: of encoder, projector and language model, mean per question.
        error: why the job cannot do this clip, or None.
    """

    correct: str
    encoder: float
    total: float
    error: str | None = None


class Ledger:
    """Trials of every job, clip after clip.

    Args:
        path: the file, or None to keep nothing.
        fingerprint: of the search; a file of another search is refused.

    Raises:
        ResultError: a file of another search, or something else.
    """

    def __init__(self, path: Path | None, fingerprint: str = "") -> None:
        self.path = path
        self.fingerprint = fingerprint
        self._rows: dict[str, dict[int, Trial]] = {}
        if path is not None and path.exists():
            self._load(path)

    def _load(self, path: Path) -> None:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            there = data["fingerprint"]
            rows = {
                name: {int(clip): Trial(**trial) for clip, trial in row.items()}
                for name, row in data["trials"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise ResultError(f"{path} is no file of a search; remove it to start anew") from e
        if there != self.fingerprint:
            raise ResultError(
                f"{path} belongs to a search with other settings; use another folder or remove it"
            )
        self._rows = rows

    def save(self) -> None:
        """Write the file."""
        if self.path is None:
            return
        trials = {
            name: {clip: _short(trial) for clip, trial in row.items()}
            for name, row in self._rows.items()
        }
        data = {"schema": SCHEMA, "fingerprint": self.fingerprint, "trials": trials}
        text = json.dumps(data, allow_nan=False) + "\n"
        write_text(self.path, text)

    def trials(self, part: str, job: Job, clips: int) -> list[Trial]:
        """Return the trials of a job on the first ``clips`` clips of one part of the file."""
        row = self._rows[_key(part, job)]
        return [row[i] for i in range(clips)]

    def error(self, part: str, job: Job) -> str | None:
        """Return why a job failed, or None."""
        row = self._rows.get(_key(part, job), {})
        return next((trial.error for trial in row.values() if trial.error), None)

    def fill(
        self,
        part: str,
        jobs: Sequence[Job],
        clips: int,
        measure: Measure,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Measure what is missing of ``jobs`` on the first ``clips`` clips; save after each.

        A job that failed once is not measured again.
        """
        jobs = list(dict.fromkeys(jobs))
        rows = [self._rows.setdefault(_key(part, job), {}) for job in jobs]
        total = len(jobs) * clips

        def missing() -> Missing:
            for i in range(clips):
                todo = tuple(
                    job
                    for job, row in zip(jobs, rows, strict=True)
                    if i not in row and self.error(part, job) is None
                )
                if todo:
                    yield i, todo

        done = sum(i in row for row in rows for i in range(clips))
        progress(done, total)
        if next(missing(), None) is not None:
            for i, trials in measure(missing()):
                for job, trial in trials.items():
                    self._rows[_key(part, job)][i] = trial
                self.save()
                done += len(trials)
                progress(done, total)
        progress(total, total)


def _key(part: str, job: Job) -> str:
    return f"{part}: {job[0]} @ {job[1]:g}"


def _short(trial: Trial) -> dict[str, Any]:
    return {k: v for k, v in asdict(trial).items() if k != "error" or v is not None}
