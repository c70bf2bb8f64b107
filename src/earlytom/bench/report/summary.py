"""What a report shows, as plain data: one :class:`Cell` per (split, method, ratio)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from earlytom.bench.report.runs import FULL

CONFIDENCE = 0.95
ALPHA = 0.05
TOLERANCE = (
    0.1  # by which a method may exceed its ratio: counts are rounded up, per frame by some methods
)


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval. Shares are in 0..1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Versus:
    """Paired difference of accuracy to the reference method at the same ratio.

    ``p`` is the two-sided bootstrap p value, ``p_holm`` the one corrected over the methods of one
    split and ratio; ``significant`` means ``p_holm < 0.05``.
    """

    difference: Estimate
    p: float
    p_holm: float
    significant: bool


@dataclass
class Cell:
    """One method at one ratio on one split, over all checkpoints that ran it.

    Attributes:
        status: ``done`` or ``unreachable`` (then all measurements are None).
        checkpoints: names of the checkpoints that are in the mean.
        notes: remarks of the runs, and how many checkpoints are missing.
        accuracy: share of right answers, mean over the checkpoints.
        relative: mean accuracy / mean accuracy of the full model, same checkpoints.
        open_accuracy: the same where the best word of the whole vocabulary must be right.
        by_type: accuracy of every question type.
        by_checkpoint: ``relative`` of every checkpoint (accuracy if there is no full run).
        versus: paired comparison with the reference; None for the reference and the full model.
        rank: 1 = highest relative accuracy of this split and ratio among the methods that reached
            the ratio; equal values share a rank.
        retention: achieved visual tokens entering the language model / tokens without compression.
        llm_retention: the same averaged over the language model's layers.
        encoder_compute: FLOPs of the vision encoder relative to the full model's.
        flops: total FLOPs (2 x multiply-adds) per question; ``flops_relative`` to the full model.
        seconds: median encoding time of a clip + median answering time of a question.
        seconds_relative: ``seconds`` relative to the full model, same checkpoints.
        peak_rss_mib: peak resident memory in MiB.
    """

    split: str
    label: str
    ratio: float
    status: str
    checkpoints: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    accuracy: Estimate | None = None
    relative: Estimate | None = None
    open_accuracy: float | None = None
    open_relative: float | None = None
    by_type: dict[str, float] = field(default_factory=dict)
    by_checkpoint: dict[str, float] = field(default_factory=dict)
    versus: Versus | None = None
    rank: int | None = None
    retention: float | None = None
    llm_retention: float | None = None
    encoder_compute: float | None = None
    flops: float | None = None
    flops_relative: float | None = None
    seconds: float | None = None
    seconds_relative: float | None = None
    peak_rss_mib: float | None = None

    @property
    def score(self) -> float | None:
        """What methods are ranked by: relative accuracy, or accuracy without a full run."""
        best = self.relative or self.accuracy
        return None if best is None else best.value

    @property
    def reached(self) -> bool:
        """Whether the language model saw no more than its share, mean over layers."""
        return self.llm_retention is None or self.llm_retention <= self.ratio * (1 + TOLERANCE)


@dataclass(frozen=True)
class Split:
    """A set of questions: how its clips were chosen and how many there are."""

    name: str
    frames: int
    seed: int
    clips: int
    questions: int


@dataclass
class Summary:
    """Everything that the renderers need; ``to_dict`` is what ``summary.json`` holds."""

    earlytom: str
    created: str
    models: list[dict[str, Any]]
    environments: list[dict[str, Any]]
    splits: list[Split]
    main_split: str
    reference: str
    ratios: list[float]
    type_ratio: float | None
    types: list[str]
    labels: list[str]
    highlighted: list[str]
    configs: dict[str, dict[str, Any]]
    resamples: int
    cells: list[Cell]
    warnings: list[str]
    _index: dict[tuple[str, str, float], Cell] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._index = {(c.split, c.label, c.ratio): c for c in self.cells}

    def cell(self, split: str, label: str, ratio: float) -> Cell | None:
        """Return the cell, or None if nothing was run there."""
        return self._index.get((split, label, ratio))

    def full(self, split: str) -> Cell | None:
        """Return the uncompressed model on ``split``."""
        return self.cell(split, FULL, 1.0)

    def series(self, split: str, label: str) -> list[Cell]:
        """Return the finished cells of a method in order of their ratios, smallest first."""
        found = (self.cell(split, label, r) for r in sorted(self.ratios))
        return [c for c in found if c is not None and c.status == "done"]

    def best(self, split: str, ratio: float) -> float | None:
        """Return the highest score of a split and ratio, of methods that reached it."""
        cells = (self.cell(split, label, ratio) for label in self.labels)
        return max((c.score for c in cells if c and c.rank and c.score is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        data = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if not f.name.startswith("_")
        }
        data["splits"] = [dataclasses.asdict(s) for s in self.splits]
        data["cells"] = [dataclasses.asdict(c) for c in self.cells]
        return {"schema": 1, "confidence": CONFIDENCE, **data}


def rank_cells(cells: Sequence[Cell]) -> None:
    """Set ``rank`` of the cells of one split and ratio that have a score and reached the ratio."""
    scores = [c.score for c in cells if c.score is not None and c.reached]
    for cell in cells:
        if cell.score is not None and cell.reached:
            cell.rank = 1 + sum(s > cell.score for s in scores)


def order_labels(
    labels: Sequence[str], ratios: Sequence[float], cells: Mapping[tuple[str, float], Cell]
) -> list[str]:
    """Order methods by mean score over ``ratios``; those that reached fewer ratios follow."""

    def key(label: str) -> tuple[int, float, str]:
        found = [c for r in ratios if (c := cells.get((label, r))) is not None]
        scores = [c.score for c in found if c.score is not None]
        mean = sum(scores) / len(scores) if scores else 0.0
        return -sum(c.score is not None and c.reached for c in found), -mean, label

    return sorted(labels, key=key)
