"""From run files to a :class:`Summary`: means over checkpoints, intervals, ranks."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from earlytom._version import __version__
from earlytom.bench.report import provenance
from earlytom.bench.report.intervals import Resampler, holm
from earlytom.bench.report.runs import FULL, Questions, Run
from earlytom.bench.report.style import PALETTE
from earlytom.bench.report.summary import (
    ALPHA,
    Cell,
    Summary,
    Versus,
    order_labels,
    rank_cells,
)
from earlytom.errors import ConfigError, ResultError

Group = Mapping[str, Run]  # checkpoint -> run
OURS = ("afterimage", "earlytom")  # the best variants of these are always highlighted
MOST_OURS = 2
FEW_CLIPS = 30  # percentile intervals over fewer clusters are too narrow


def summarise(
    runs: Sequence[Run],
    *,
    reference: str = "earlytom-official",
    main_split: str = "standard",
    type_ratio: float = 0.1,
    highlight: Sequence[str] = (),
    resamples: int = 10_000,
    skipped: Sequence[str] = (),
) -> Summary:
    """Aggregate runs.

    Args:
        runs: as :func:`earlytom.bench.report.load_runs` returns them.
        reference: label that methods are compared with.
        main_split: split of the main table; the first one there is if it was not run.
        type_ratio: ratio of the table by question type; the nearest one there is if it was not run.
        highlight: labels drawn in colour, at most six beside the reference; chosen by rank if
            empty.
        resamples: bootstrap resamples.
        skipped: lines about files that were left out; they become warnings.

    Raises:
        ConfigError: too many labels to highlight.
        ResultError: no run has answers, or a highlighted label was not run.
    """
    if len(set(highlight) - {reference}) > len(PALETTE):
        raise ConfigError(f"at most {len(PALETTE)} labels beside the reference can be highlighted")
    warnings = [f"left out: {line}" for line in skipped]
    splits = provenance.splits(runs)
    if not splits:
        raise ResultError("no finished run: nothing to report")
    if main_split not in (s.name for s in splits):
        warnings.append(
            f"no finished run on split {main_split!r}; the main table shows {splits[0].name!r}"
        )
        main_split = splits[0].name
    splits.sort(key=lambda s: s.name != main_split)
    labels = sorted({r.label for r in runs} - {FULL})
    ratios = sorted({r.ratio for r in runs if r.label != FULL}, reverse=True)
    if reference not in labels:
        warnings.append(f"reference {reference!r} was not run: no differences are tested")
    cells: list[Cell] = []
    for split in splits:
        if split.clips < FEW_CLIPS:
            warnings.append(
                f"split {split.name!r} has only {split.clips} clips: its intervals are too narrow"
            )
        here = [r for r in runs if r.split == split.name]
        found, remarks = _split_cells(here, ratios, reference, resamples)
        cells += found
        warnings += remarks
    main = {(c.label, c.ratio): c for c in cells if c.split == main_split}
    labels = order_labels(labels, ratios, main)
    unknown = [h for h in highlight if h not in labels]
    if unknown:
        raise ResultError(f"cannot highlight {unknown[0]!r}: no such label among the runs")
    environments = provenance.environments(runs)
    if provenance.several_machines(environments):
        warnings.append("runs come from several machines: their times are not comparable")
    return Summary(
        earlytom=__version__,
        created=datetime.date.today().isoformat(),
        models=provenance.models(runs),
        environments=environments,
        splits=splits,
        main_split=main_split,
        reference=reference,
        ratios=ratios,
        type_ratio=min(ratios, key=lambda r: abs(r - type_ratio)) if ratios else None,
        types=provenance.types(runs, main_split),
        labels=labels,
        highlighted=list(dict.fromkeys(highlight)) or _highlighted(runs, labels, reference),
        configs=provenance.configs(runs, labels),
        resamples=resamples,
        cells=cells,
        warnings=warnings,
    )


def _split_cells(
    runs: Sequence[Run], ratios: Sequence[float], reference: str, resamples: int
) -> tuple[list[Cell], list[str]]:
    """All cells of one split, and what to warn about."""
    groups: dict[tuple[str, float], dict[str, Run]] = {}
    for run in runs:
        groups.setdefault((run.label, run.ratio), {})[run.checkpoint] = run
    boot = Resampler(next(q.clip for r in runs if (q := r.questions) is not None), resamples)
    full = {k: r for k, r in groups.get((FULL, 1.0), {}).items() if r.questions is not None}
    checkpoints = sorted({r.checkpoint for r in runs})
    cells = {key: _cell(group, full, checkpoints, boot) for key, group in groups.items()}
    for ratio in ratios:
        same = {k[0]: c for k, c in cells.items() if k[1] == ratio and k[0] != FULL}
        base = groups.get((reference, ratio), {})
        others = {lab: groups[lab, ratio] for lab in same if lab != reference}
        for label, versus in _compare(others, base, boot).items():
            same[label].versus = versus
        rank_cells(list(same.values()))
    warnings = []
    missing = [c for c in checkpoints if c not in full]
    if missing:
        where = f"of {', '.join(missing)} on split {runs[0].split!r}"
        warnings.append(f"no full run {where}: its accuracies cannot be put in relation")
    return [cells[k] for k in sorted(cells, key=lambda k: (k[0], -k[1]))], warnings


def _cell(group: Group, full: Group, checkpoints: Sequence[str], boot: Resampler) -> Cell:
    first = next(iter(group.values()))
    done = {k: r for k, r in sorted(group.items()) if r.questions is not None}
    notes = _notes(group)
    cell = Cell(first.split, first.label, first.ratio, "done" if done else "unreachable")
    if not done:
        cell.notes = notes
        return cell
    if len(done) < len(checkpoints):
        notes += (f"{len(done)} of {len(checkpoints)} checkpoints ({', '.join(done)})",)
    cell.notes, cell.checkpoints = notes, tuple(done)
    values = done.values()
    cell.accuracy = boot.mean(_correct(values))
    cell.open_accuracy = _open(values)
    cell.by_type = _by_type(values)
    base = {k: full[k] for k in done if k in full}
    if len(base) == len(done) and all(_correct([r]).any() for r in base.values()):
        cell.relative = boot.ratio(_correct(values), _correct(base.values()))
        base_open = _open(base.values())
        if cell.open_accuracy is not None and base_open:
            cell.open_relative = cell.open_accuracy / base_open
        cell.by_checkpoint = {k: _accuracy(r) / _accuracy(base[k]) for k, r in done.items()}
        cell.flops_relative = _mean(_over(r.flops.get("total"), base[k].flops.get("total"))
                                    for k, r in done.items())  # fmt: skip
        cell.seconds_relative = _mean(_over(_seconds(r), _seconds(base[k]))
                                      for k, r in done.items())  # fmt: skip
    else:
        cell.by_checkpoint = {k: _accuracy(r) for k, r in done.items()}
    cell.retention = _mean(r.achieved.get("retention") for r in values)
    cell.llm_retention = _mean(r.achieved.get("llm_retention") for r in values)
    cell.encoder_compute = _mean(r.achieved.get("encoder_compute") for r in values)
    cell.flops = _mean(r.flops.get("total") for r in values)
    cell.seconds = _mean(_seconds(r) for r in values)
    cell.peak_rss_mib = _mean(r.memory.get("peak_rss_mib") for r in values)
    return cell


def _compare(others: Mapping[str, Group], base: Group, boot: Resampler) -> dict[str, Versus]:
    """Paired differences to ``base`` on the checkpoints that both ran, Holm-corrected together."""
    found = {}
    for label, group in others.items():
        both = [k for k in group if k in base and group[k].questions and base[k].questions]
        if both:
            ours, theirs = ([g[k] for k in both] for g in (group, base))
            found[label] = boot.difference(_correct(ours), _correct(theirs))
    corrected = holm([p for _, p in found.values()])
    return {
        label: Versus(difference, p, p_holm, p_holm < ALPHA)
        for (label, (difference, p)), p_holm in zip(found.items(), corrected, strict=True)
    }


def _questions(run: Run) -> Questions:
    assert run.questions is not None  # only finished runs get here
    return run.questions


def _correct(runs: Iterable[Run]) -> NDArray[np.float64]:
    """``[questions]`` share of the checkpoints that answered right."""
    answers = np.stack([_questions(r).correct for r in runs])
    share: NDArray[np.float64] = answers.mean(axis=0, dtype=np.float64)
    return share


def _open(runs: Iterable[Run]) -> float | None:
    columns = [_questions(r).open for r in runs]
    return None if any(c is None for c in columns) else float(np.mean(columns))  # type: ignore[arg-type]


def _by_type(runs: Iterable[Run]) -> dict[str, float]:
    runs = list(runs)
    kind, correct = _questions(runs[0]).kind, _correct(runs)
    return {str(k): float(correct[kind == k].mean()) for k in dict.fromkeys(kind.tolist())}


def _accuracy(run: Run) -> float:
    return float(_questions(run).correct.mean())


def _seconds(run: Run) -> float | None:
    encode, answer = run.seconds.get("encode"), run.seconds.get("answer")
    return None if encode is None or answer is None else encode + answer


def _over(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean, or None unless every value is known."""
    found = list(values)
    known = [v for v in found if v is not None]
    return sum(known) / len(known) if found and len(known) == len(found) else None


def _notes(group: Group) -> tuple[str, ...]:
    """Remarks of the runs, each once; with the checkpoint if they do not all say the same."""
    said = {}
    for name, run in sorted(group.items()):
        words = [w for w in ("unreachable" if run.questions is None else "", run.note) if w]
        if words:
            said[name] = ": ".join(words)
    if len(said) == len(group) and len(set(said.values())) == 1:
        return (next(iter(said.values())),)
    return tuple(f"{name}: {text}" for name, text in said.items())


def _highlighted(runs: Sequence[Run], labels: Sequence[str], reference: str) -> list[str]:
    """The reference, the best of this project's, and the best other methods, best first."""
    ours = {r.label for r in runs if r.method in OURS} - {reference}
    variants = [x for x in labels if x in ours][:MOST_OURS]
    others = [x for x in labels if x not in ours and x != reference]
    chosen = {reference, *variants, *others[: len(PALETTE) - len(variants)]}
    return [x for x in labels if x in chosen]
