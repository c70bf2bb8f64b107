"""The held-out check: winner against default, with paired bootstrap intervals over clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earlytom.bench.report.intervals import Resampler
from earlytom.bench.tune.data import Sample
from earlytom.bench.tune.ledger import Job, Ledger
from earlytom.bench.tune.search import FULL, accuracy_and_cost
from earlytom.errors import EarlyTomError

HELD_OUT = "held out"
Column = NDArray[np.float64]


def held_out_jobs(
    reference: str, winner: str, per_ratio: Mapping[float, str], ratios: Sequence[float]
) -> list[Job]:
    """Return what has to be measured on the held-out clips."""
    jobs: list[Job] = [(FULL, 1.0)]
    jobs += [(name, ratio) for name in (reference, winner) for ratio in ratios]
    return list(dict.fromkeys([*jobs, *((name, ratio) for ratio, name in per_ratio.items())]))


def compare(
    ledger: Ledger,
    sample: Sample,
    reference: str,
    winner: str,
    per_ratio: Mapping[float, str],
    ratios: Sequence[float],
    resamples: int = 10_000,
) -> dict[str, Any]:
    """Return accuracies, costs and paired differences on the held-out clips, JSON-ready.

    Args:
        ledger: has all of :func:`held_out_jobs`.
        sample: the clips.
        reference: the default, or what stands in for it.
        winner: of the search.
        per_ratio: best candidate of every ratio; empty to leave that comparison out.
        ratios: retention ratios.
        resamples: of the bootstrap.

    Raises:
        EarlyTomError: a job failed.
    """
    for job in held_out_jobs(reference, winner, per_ratio, ratios):
        error = ledger.error(HELD_OUT, job)
        if error is not None:
            raise EarlyTomError(f"{job[0]} fails on a held-out clip at ratio {job[1]:g}: {error}")
    asked = [len(clip.questions) for clip in sample.clips]
    resampler = Resampler(np.repeat(np.arange(len(asked)), asked), resamples)
    full = _column(ledger, (FULL, 1.0), len(asked))
    default = {r: _column(ledger, (reference, r), len(asked)) for r in ratios}
    tuned = {r: _column(ledger, (winner, r), len(asked)) for r in ratios}
    best = {r: _column(ledger, (name, r), len(asked)) for r, name in per_ratio.items()}
    rows = []
    for ratio in ratios:
        row = _row(resampler, default[ratio], tuned[ratio], best.get(ratio))
        for name, label in ((reference, "default"), (winner, "tuned")):
            _, cost = accuracy_and_cost(ledger, HELD_OUT, (name, ratio), len(asked))
            row[f"{label}_cost"] = dataclasses.asdict(cost)
        rows.append({"retention_ratio": ratio, "per_ratio_winner": per_ratio.get(ratio), **row})
    means = [_mean(columns) for columns in (default, tuned, best)]
    mean = _row(resampler, means[0], means[1], means[2] if best else None)
    return {
        "reference": reference,
        "clips": len(asked),
        "questions": int(sum(asked)),
        "full": float(full.mean()),
        "ratios": rows,
        "mean": mean,
        "by_split": _by_split(sample, asked, means[0], means[1], resamples),
    }


def _column(ledger: Ledger, job: Job, clips: int) -> Column:
    """1 for every right answer, in order of clips and questions."""
    text = "".join(trial.correct for trial in ledger.trials(HELD_OUT, job, clips))
    return np.array([c == "1" for c in text], np.float64)


def _mean(columns: Mapping[float, Column]) -> Column:
    """Mean over the ratios, per question."""
    mean: Column = np.mean(list(columns.values()), 0) if columns else np.zeros(0)
    return mean


def _row(
    resampler: Resampler, default: Column, tuned: Column, best: Column | None
) -> dict[str, Any]:
    gain, p = resampler.difference(tuned, default)
    row: dict[str, Any] = {
        "default": float(default.mean()),
        "tuned": float(tuned.mean()),
        "gain": dataclasses.asdict(gain),
        "p": p,
    }
    if best is not None:
        more, p = resampler.difference(best, tuned)
        row |= {"per_ratio": float(best.mean()), "per_ratio_gain": dataclasses.asdict(more)}
        row["per_ratio_p"] = p
    return row


def _by_split(
    sample: Sample, asked: Sequence[int], default: Column, tuned: Column, resamples: int
) -> dict[str, Any]:
    """Mean over the ratios on every single split."""
    clip = np.repeat(np.arange(len(asked)), asked)
    split = np.repeat(np.array(sample.splits), asked)
    found = {}
    for name in dict.fromkeys(sample.splits):
        here = split == name
        found[name] = _row(Resampler(clip[here], resamples), default[here], tuned[here], None)
    return found
