"""Generated clips as a task for lmms-eval: video files, a JSON lines file and task descriptions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from earlytom.errors import ConfigError, VideoError
from earlytom.files import write_text
from earlytom.tiny.clips import write_video

TASK = "earlytom_tiny"
CHOICE_TASK = "earlytom_tiny_choice"
_HEADER = "# Written by `earlytom tiny lmms-task`, for lmms_eval --include_path THIS_FOLDER."
_COMMON = """\
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_visual: video
doc_to_text: question
doc_to_target: answer
cluster_key: video
metadata:
  version: 1.0
"""
_GENERATE = """\
output_type: generate_until
generation_kwargs:
  max_new_tokens: 8
  temperature: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
"""
_CHOOSE = """\
output_type: multiple_choice
doc_to_choice: candidates
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def write_lmms_task(
    folder: str | Path,
    clips: int = 20,
    *,
    questions: int = 6,
    seed: int = 0,
    num_frames: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Write clips and two tasks about them, for ``lmms_eval --include_path FOLDER``.

    ``earlytom_tiny`` lets the model say the answer word (exact match), ``earlytom_tiny_choice``
    compares the likelihoods of the four candidates. Paths in the files are absolute, because
    lmms-eval knows no others: write the task again rather than move it.

    Args:
        folder: made if absent; files of an earlier run with the same names are replaced.
        clips: number of videos, >= 1; clip ``i`` has the seed ``seed + i``.
        questions: at most this many per clip, >= 1, of as many types as possible.
        seed: any non-negative number.
        num_frames: 4, 8, 16 or 32 per clip.
        progress: called with the number of clips written.

    Returns:
        The rows of ``questions.jsonl``.

    Raises:
        ConfigError: an argument is out of range, or the clips came without questions.
        VideoError: a file cannot be written.
    """
    for name, value in (("clips", clips), ("questions", questions)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    root = Path(folder).resolve()
    rows: list[dict[str, Any]] = []
    try:
        (root / "videos").mkdir(parents=True, exist_ok=True)
        for i in range(clips):
            path = root / "videos" / f"clip_{i:03d}.mp4"
            rows += _clip_rows(path, seed + i, num_frames, questions)
            progress(i + 1)
        if not rows:
            raise ConfigError("these clips have no questions; use another seed or more clips")
        data = root / "questions.jsonl"
        _write(data, "".join(json.dumps(r) + "\n" for r in rows))
        for task, kind in ((TASK, _GENERATE), (CHOICE_TASK, _CHOOSE)):
            common = _COMMON.format(data=json.dumps(str(data)))  # a JSON string is a YAML string
            _write(root / f"{task}.yaml", f"{_HEADER}\ntask: {task}\n{common}{kind}")
    except OSError as e:
        raise VideoError(f"cannot write {root}: {e}") from e
    return rows


def _clip_rows(path: Path, seed: int, num_frames: int, limit: int) -> list[dict[str, Any]]:
    listing = write_video(path, seed, num_frames=num_frames)
    found = json.loads(listing.read_text(encoding="utf-8"))["questions"]
    kept = _of_many_types(found, limit, seed)
    return [{"id": f"{path.stem}_{k}", "video": str(path), **q} for k, q in enumerate(kept)]


def _of_many_types(questions: list[dict[str, Any]], limit: int, shift: int) -> list[dict[str, Any]]:
    """Take one question per type before a second of any, another type first in every clip."""
    depth: dict[str, int] = {}
    rounds: list[tuple[int, int, dict[str, Any]]] = []
    kinds = sorted({q["type"] for q in questions})
    for q in questions:
        depth[q["type"]] = depth.get(q["type"], 0) + 1
        rank = (kinds.index(q["type"]) - shift * limit) % len(kinds)
        rounds.append((depth[q["type"]], rank, q))
    return [q for *_, q in sorted(rounds, key=lambda r: r[:2])[:limit]]


def _write(path: Path, text: str) -> None:
    write_text(path, text)
