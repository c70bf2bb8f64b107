"""Successive halving: all candidates on a few clips, the better ones on more (Jamieson, 2016).

Nothing here knows models or videos: candidates are names, and a function measures them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from earlytom.bench.tune.ledger import Job, Ledger, Measure
from earlytom.errors import ConfigError

FULL = "full"
DEFAULT = "default"
LIMITED = "default within the limit"  # encoder_budget set to it, everything else as by default
_SLACK = 1e-6  # of rounding in a measured share
_SCREEN_CLIPS = 2
_SCREEN_SLACK = 0.05  # a few clips may cost more than the average one

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Limits:
    """Most floating point operations allowed at any ratio / those without compression.

    ``encoder``: of the vision encoder; ``total``: of encoder, projector and language model.
    """

    encoder: float | None = None
    total: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("encoder", self.encoder), ("total", self.total)):
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"the {name} limit must be in (0, 1], got {value}")

    def broken_by(self, costs: Mapping[float, Cost], slack: float = _SLACK) -> str | None:
        """Return what is over a limit at which ratio, in words, or None."""
        for name in ("encoder", "total"):
            limit = getattr(self, name)
            for ratio, cost in costs.items():
                spent = getattr(cost, name)
                if limit is not None and spent > limit + slack:
                    return f"{name} {spent:.3f} > {limit:g} at ratio {ratio:g}"
        return None


@dataclass(frozen=True)
class Cost:
    """Mean shares of the operations without compression."""

    encoder: float
    total: float


@dataclass(frozen=True)
class Rung:
    """One round: ``entering`` candidates and the defaults are measured on ``clips`` clips."""

    clips: int
    entering: int


@dataclass
class Standing:
    """What is known of a candidate.

    Attributes:
        clips: clips it was measured on.
        accuracy: share of right answers at every ratio.
        cost: share of the operations at every ratio.
        out: why it left the search, or None.
    """

    clips: int = 0
    accuracy: dict[float, float] = field(default_factory=dict)
    cost: dict[float, Cost] = field(default_factory=dict)
    out: str | None = None

    @property
    def mean(self) -> float:
        """Mean accuracy over the ratios."""
        return sum(self.accuracy.values()) / len(self.accuracy)


@dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
        winner: best mean accuracy over the ratios.
        per_ratio: best of the finalists at every single ratio.
        finalists: measured on all clips and within the limits, best first.
        standings: of every candidate.
    """

    winner: str
    per_ratio: dict[float, str]
    finalists: list[str]
    standings: dict[str, Standing]

    @property
    def reference(self) -> str:
        """The default that the winner is compared with: one within the limits if there is any."""
        return LIMITED if DEFAULT not in self.finalists and LIMITED in self.finalists else DEFAULT


def plan_rungs(candidates: int, clips: int, rungs: int, eta: float = 3.0) -> list[Rung]:
    """Return rounds in which clips grow and candidates shrink by ``eta``; the last has all clips.

    One rung is a plain random search.

    Raises:
        ConfigError: a number out of range.
    """
    if candidates < 1 or clips < 1 or rungs < 1 or eta <= 1:
        raise ConfigError("candidates, clips and rungs must be at least 1 and eta above 1")
    plan: list[Rung] = []
    for i in range(rungs):
        seen = math.ceil(clips / eta ** (rungs - 1 - i))
        entering = max(1, math.ceil(candidates / eta**i))
        if plan and plan[-1].clips == seen:
            continue
        plan.append(Rung(seen, entering))
    return plan


def clip_runs(plan: Sequence[Rung]) -> int:
    """Return how often a candidate looks at a clip, defaults and screening left out."""
    before = [0, *(rung.clips for rung in plan)]
    return sum(r.entering * (r.clips - b) for r, b in zip(plan, before, strict=False))


def search(
    candidates: Sequence[str],
    ratios: Sequence[float],
    plan: Sequence[Rung],
    limits: Limits,
    ledger: Ledger,
    measure: Measure,
    progress: Progress = lambda stage, done, total: None,
) -> Found:
    """Find the candidate with the best mean accuracy within the limits.

    The defaults, if they are candidates and within the limits, are never halved away, so the winner
    is at least as good as they are on the clips of the search. Of equally good candidates the one
    that costs the encoder least wins, then the first.

    Args:
        candidates: names, in order of preference; there may be more than enter the first rung, and
            then those within the limits on two clips do.
        ratios: retention ratios.
        plan: rounds.
        limits: on what a candidate may cost.
        ledger: keeps measurements; what is in it is not measured again.
        measure: finds out what jobs (candidate, ratio) do on clips.
        progress: told the stage, and the jobs done and to do.

    Raises:
        ConfigError: no candidate is within the limits.
    """
    standings = {name: Standing() for name in candidates}
    alive = list(candidates)

    def run(stage: str, names: Sequence[str], clips: int, used: Sequence[float]) -> None:
        jobs: list[Job] = [(FULL, 1.0), *((name, ratio) for name in names for ratio in used)]
        ledger.fill("tune", jobs, clips, measure, lambda d, t: progress(stage, d, t))
        for name in names:
            standings[name] = _stand(ledger, name, used, clips)

    if sum(name not in (DEFAULT, LIMITED) for name in alive) > plan[0].entering:
        few = min(_SCREEN_CLIPS, plan[0].clips)
        run("screening", alive, few, [max(ratios)])
        alive = _within(alive, standings, limits, _SCREEN_SLACK)
        alive = _first(alive, plan[0].entering, standings, "not drawn")
    for number, rung in enumerate(plan):
        if number:
            ranked = sorted(alive, key=lambda name: _rank(standings[name]))
            alive = _first(ranked, rung.entering, standings, f"left in round {number}")
        run(f"round {number + 1} of {len(plan)}", alive, rung.clips, ratios)
        alive = _within(alive, standings, limits)
        if not alive:
            reasons = [s.out for s in standings.values() if s.out and " > " in s.out]
            raise ConfigError(
                f"no candidate is within the limits, e.g. {reasons[-1] if reasons else 'failed'}"
            )
    finalists = sorted(alive, key=lambda name: _rank(standings[name]))
    best = {
        r: max(finalists, key=lambda n: standings[n].accuracy[r])  # the first of equals
        for r in ratios
    }
    return Found(finalists[0], best, finalists, standings)


def accuracy_and_cost(ledger: Ledger, part: str, job: Job, clips: int) -> tuple[float, Cost]:
    """Return the share of right answers of a job, and its mean cost, on the first clips."""
    trials, full = (ledger.trials(part, j, clips) for j in (job, (FULL, 1.0)))
    right = sum(t.correct.count("1") for t in trials)
    asked = sum(len(t.correct) for t in trials)
    spent = [(t.encoder / f.encoder, t.total / f.total) for t, f in zip(trials, full, strict=True)]
    encoder, total = np.mean(spent, 0)
    return right / asked, Cost(float(encoder), float(total))


def _stand(ledger: Ledger, name: str, ratios: Sequence[float], clips: int) -> Standing:
    standing = Standing(clips)
    for ratio in ratios:
        error = ledger.error("tune", (name, ratio))
        if error is not None:
            return Standing(clips, out=error)
        found = accuracy_and_cost(ledger, "tune", (name, ratio), clips)
        standing.accuracy[ratio], standing.cost[ratio] = found
    return standing


def _rank(standing: Standing) -> tuple[float, float]:
    return -standing.mean, sum(c.encoder for c in standing.cost.values())


def _within(
    names: Sequence[str], standings: Mapping[str, Standing], limits: Limits, slack: float = _SLACK
) -> list[str]:
    """Return those that work and are within the limits; tell the others why they are out."""
    for name in names:
        if standings[name].out is None:
            standings[name].out = limits.broken_by(standings[name].cost, slack)
    return [name for name in names if standings[name].out is None]


def _first(
    names: Sequence[str], count: int, standings: Mapping[str, Standing], reason: str
) -> list[str]:
    """Return the first ``count``, and the defaults on top."""
    drawn = [name for name in names if name not in (DEFAULT, LIMITED)][:count]
    kept = [name for name in names if name in drawn or name in (DEFAULT, LIMITED)]
    for name in names:
        if name not in kept:
            standings[name].out = reason
    return kept


def describe(standing: Standing) -> dict[str, Any]:
    """Return JSON-ready data."""
    return {
        "clips": standing.clips,
        "accuracy": {f"{r:g}": a for r, a in standing.accuracy.items()},
        "encoder": {f"{r:g}": c.encoder for r, c in standing.cost.items()},
        "total": {f"{r:g}": c.total for r, c in standing.cost.items()},
        "out": standing.out,
    }
