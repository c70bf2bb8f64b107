"""What has been answered so far, one line per clip and run, so that an interrupted run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from earlytom.bench.records import Outcome

Key = tuple[str, int]  # fingerprint of the run, number of the clip


class Journal:
    """An append-only file of outcomes; a line cut off by an interruption is left out.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[Key, Outcome] = {}
        self._file: TextIO | None = None
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            run, clip, values = json.loads(line)
            values["flops"] = tuple(values["flops"])
            values["timed"] = values["timed"] and tuple(values["timed"])
            self.done[run, clip] = Outcome(**values)
        except (ValueError, TypeError, KeyError):
            return

    def add(self, outcomes: Iterable[tuple[Key, Outcome]]) -> None:
        """Remember outcomes, in memory and in the file."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
            self._file.write("\n")  # ends a line that was cut off
        for (run, clip), outcome in outcomes:
            self.done[run, clip] = outcome
            row: tuple[str, int, dict[str, Any]] = (run, clip, vars(outcome))
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Close and delete the file, when run files hold everything that was in it."""
        self.close()
        self.path.unlink(missing_ok=True)
        for folder in list(self.path.parents)[:2]:  # of the model, and of all models
            if not folder.is_dir() or any(folder.iterdir()):
                return
            folder.rmdir()
