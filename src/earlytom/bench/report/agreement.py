"""Whether checkpoints rank the methods alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from earlytom.bench.report.summary import Summary


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, equal values sharing their mean rank.

    None where it is not defined: fewer than two values, or all of them equal.
    """
    x, y = _ranks(a), _ranks(b)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def agreement(summary: Summary, ratio: float) -> tuple[float, float, int] | None:
    """Return the lowest and highest rank correlation of two checkpoints at ``ratio``.

    Of the methods that both ran on the main split, and the fewest of those; None where there are
    no two.
    """
    cells = [summary.cell(summary.main_split, label, ratio) for label in summary.labels]
    runs = [c.by_checkpoint for c in cells if c]
    found, counts = [], []
    for a, b in combinations([m["name"] for m in summary.models], 2):
        both = [by for by in runs if a in by and b in by]
        r = spearman([by[a] for by in both], [by[b] for by in both])
        if r is not None:
            found.append(r)
            counts.append(len(both))
    return (min(found), max(found), min(counts)) if found else None


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks
