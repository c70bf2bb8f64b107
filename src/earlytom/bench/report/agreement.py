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


def agreement(summary: Summary, ratio: float) -> tuple[float, float] | None:
    """Return the lowest and highest rank correlation of two checkpoints at ``ratio``.

    Of the methods that every checkpoint ran on the main split; None where there are no two.
    """
    cells = [summary.cell(summary.main_split, label, ratio) for label in summary.labels]
    names = [m["name"] for m in summary.models]
    common = [c.by_checkpoint for c in cells if c and len(c.by_checkpoint) == len(names)]
    columns = [[by[name] for by in common] for name in names]
    found = [r for a, b in combinations(columns, 2) if (r := spearman(a, b)) is not None]
    return (min(found), max(found)) if found else None


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks
