"""The accuracy comparison: every contender at every ratio on every split, into run files."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earlytom.bench import records
from earlytom.bench.contenders import FULL, Entry, contenders, entry
from earlytom.bench.environment import environment
from earlytom.bench.journal import Journal
from earlytom.bench.records import Task
from earlytom.bench.suite import SPLITS, SuiteClip, build_split
from earlytom.bench.workers import Done, Job, load_model, run_jobs
from earlytom.checks import check_choice, check_ratio
from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.method import POSITIONS
from earlytom.tiny import weights_path
from earlytom.tiny.config import DEFAULT_ARCH

RATIOS = (0.25, 0.2, 0.15, 0.1, 0.05)
TIMED_CLIPS = 4  # of a split

Progress = Callable[[str, int, int, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What to compare.

    Attributes:
        out: folder of the run files.
        model: folder of a tiny model, None for the shipped one.
        methods: labels or method names, or ``all``.
        ratios: retention ratios.
        splits: names of splits.
        questions: questions per split (rounded up to equal numbers of every type), None: its own.
        seed: of the splits.
        positions: where the tokens left stand, see :class:`earlytom.Method`.
        workers: processes of one thread each.

    Raises:
        ConfigError: a value out of range or an unknown name.
    """

    out: Path
    model: Path | None = None
    methods: tuple[str, ...] = ("all",)
    ratios: tuple[float, ...] = RATIOS
    splits: tuple[str, ...] = tuple(SPLITS)
    questions: int | None = None
    seed: int = 1
    positions: str = "auto"
    workers: int = 1

    def __post_init__(self) -> None:
        for ratio in self.ratios:
            check_ratio("ratios", ratio)
        if not self.ratios or not self.splits or self.workers < 1:
            raise ConfigError("ratios and tasks must not be empty, workers must be at least 1")
        for split in self.splits:
            check_choice("tasks", split, tuple(SPLITS))
        check_choice("positions", self.positions, POSITIONS)
        contenders(self.methods)


@dataclass
class Result:
    """What a comparison came to.

    Attributes:
        written: files of finished runs written now.
        found: files of finished runs that were there already.
        unreachable: (split, label, ratio, reason) of runs that cannot be.
        broken: (split, label, ratio, error) of runs that failed; no file is written for them.
    """

    written: list[Path] = field(default_factory=list)
    found: list[Path] = field(default_factory=list)
    unreachable: list[tuple[str, str, float, str]] = field(default_factory=list)
    broken: list[tuple[str, str, float, str]] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        """All files of finished runs."""
        return sorted({*self.written, *self.found})


def compare(plan: Plan, progress: Progress = lambda *_: None) -> Result:
    """Run what has no file yet; an interrupted call goes on where it was.

    Args:
        plan: what to compare.
        progress: called as ``progress(split, runs done, all runs, clips done, all clips)``.

    Raises:
        ConfigError: the model is not a tiny model, or the plan makes no sense.
        ResultError: a worker process died.
    """
    folder = weights_path() if plan.model is None else plan.model
    about = describe_model(folder, plan.model)
    model = load_model(folder)
    _check_tiny(model, folder)
    about["parameters"] = sum(p.numel() for p in model.parameters())
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    around = environment(1, dtype, str(model.config._attn_implementation))
    entries = [Entry(FULL, 1.0, None), *_entries(plan, model)]
    del model
    result = Result()
    total = len(entries) * len(plan.splits)
    for number, split in enumerate(plan.splits):
        tasks = [
            Task(e, split, SPLITS[split].frames, plan.seed, plan.questions, about) for e in entries
        ]

        def report(
            runs: int, clips: int, of: int, split: str = split, base: int = number * len(entries)
        ) -> None:
            progress(split, base + runs, total, clips, of)

        _run_split(plan, folder, tasks, around, result, report)
    progress(plan.splits[-1], total, total, 1, 1)
    return result


def _entries(plan: Plan, model: Any) -> list[Entry]:
    from earlytom.models import find_adapter

    depth = len(find_adapter(model).decoder_layers)
    return [
        entry(contender, ratio, plan.positions, model, depth)
        for contender in contenders(plan.methods)
        for ratio in sorted(set(plan.ratios), reverse=True)
    ]


def _run_split(
    plan: Plan,
    folder: Path,
    tasks: Sequence[Task],
    around: dict[str, Any],
    result: Result,
    progress: Callable[[int, int, int], None],
) -> None:
    pending: dict[str, Task] = {}
    for task in tasks:
        status, note = task.state(plan.out) or (None, None)
        if status == records.DONE:
            result.found.append(task.path(plan.out))
        elif status is not None or task.entry.error is not None:
            reason = note or task.entry.error or ""
            _give_up(task, reason, plan, around, result, write=status is None)
        else:
            pending[task.fingerprint] = task
    there = len(tasks) - len(pending)
    progress(there, 0, 1)
    if not pending:
        return
    clips = build_split(tasks[0].split, plan.seed, plan.questions)
    name = f"{tasks[0].split}.jsonl"
    journal = Journal(plan.out / "partial" / str(tasks[0].model["name"]) / name)
    finished = sum(all((run, c.number) in journal.done for run in pending) for c in clips)
    try:
        for done in run_jobs(folder, _jobs(clips, pending, journal), plan.workers):
            journal.add(((run, done.clip), outcome) for run, outcome in done.outcomes.items())
            _drop_failed(done, pending, plan, around, result)
            finished += 1
            progress(there, finished, len(clips))
    finally:
        journal.close()
    for run, task in pending.items():
        outcomes = [journal.done[run, clip.number] for clip in clips]
        records.save_done(task, plan.out, clips, outcomes, around)
        result.written.append(task.path(plan.out))
    journal.remove()


def _jobs(clips: Sequence[SuiteClip], pending: dict[str, Task], journal: Journal) -> Iterator[Job]:
    """One job per clip, of the runs that have not answered it yet."""
    timed = {(2 * k + 1) * len(clips) // (2 * TIMED_CLIPS) for k in range(TIMED_CLIPS)}
    for i, clip in enumerate(clips):
        runs = tuple(
            (run, task.entry.method)
            for run, task in pending.items()
            if (run, clip.number) not in journal.done
        )
        if runs:
            yield Job(clip, runs, timed=i in timed)


def _drop_failed(
    done: Done, pending: dict[str, Task], plan: Plan, around: dict[str, Any], result: Result
) -> None:
    for run, error in done.refused.items():
        task = pending.pop(run, None)
        if task is not None:
            _give_up(task, error, plan, around, result)
    for run, error in done.broken.items():
        task = pending.pop(run, None)
        if task is not None:
            e = task.entry
            result.broken.append((task.split, e.label, e.retention_ratio, error))


def _give_up(
    task: Task,
    error: str,
    plan: Plan,
    around: dict[str, Any],
    result: Result,
    write: bool = True,
) -> None:
    e = task.entry
    result.unreachable.append((task.split, e.label, e.retention_ratio, error))
    if write:
        records.save_unreachable(task, plan.out, error, around)


# ---------------------------------------------------------------------- the model
def describe_model(folder: Path, given: Path | None) -> dict[str, Any]:
    """Return name, family, path, hash and origin of the weights of a model folder.

    Raises:
        ConfigError: not a model folder.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise ConfigError(f"{folder} is not a model folder (config.json and *.safetensors)")
    digest = hashlib.sha256()
    for path in (folder / "config.json", *weights):
        digest.update(path.read_bytes())
    name, origin, kind = folder.resolve().name, "unknown", DEFAULT_ARCH
    with contextlib.suppress(ValueError, AttributeError):  # loading will say what is wrong with it
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type", kind)
    recipe = folder / "training.json"
    if recipe.is_file():
        try:
            made = json.loads(recipe.read_text(encoding="utf-8"))
            family = f"{made['arch']}-" if "arch" in made else ""
            name = f"tiny-{family}seed{int(made['seed'])}"
            origin = "trained (generated videos)"
        except (ValueError, KeyError, TypeError):
            pass  # not a recipe of ours
    shown = "shipped" if given is None else str(given)
    about = {"name": name, "family": kind, "path": shown, "weights": origin}
    return about | {"sha256": digest.hexdigest()}


def _check_tiny(model: Any, folder: Path) -> None:
    """Raise UnsupportedModelError unless the model speaks the language of the questions."""
    from earlytom.models import find_adapter
    from earlytom.tiny.vocabulary import VIDEO_ID, vocabulary_size

    adapter = find_adapter(model)
    rows = model.get_input_embeddings().weight.shape[0]
    if rows != vocabulary_size() or adapter.video_token_id != VIDEO_ID:
        raise UnsupportedModelError(
            f"{folder} is not a tiny model: its vocabulary is not that of the questions"
        )
