"""Paired cluster bootstrap: clips are drawn, all their questions and all methods come along."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from earlytom.bench.report.summary import CONFIDENCE, Estimate

Column = NDArray[np.float64]


class Resampler:
    """One set of resamples of the clips of a split, shared by every comparison.

    Args:
        clip: ``[n]`` clip of every question.
        resamples: number of resamples.
        seed: of the random numbers.
    """

    def __init__(self, clip: NDArray[np.int64], resamples: int = 10_000, seed: int = 0) -> None:
        _, self._clip, asked = np.unique(clip, return_inverse=True, return_counts=True)
        n = len(asked)
        draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
        self._weights = draws.astype(np.float64)  # [resamples, clips]
        self._asked = self._weights @ asked
        self._n = n

    def _means(self, values: Column) -> Column:
        per_clip = np.bincount(self._clip, weights=values, minlength=self._n)
        means: Column = (self._weights @ per_clip) / self._asked
        return means

    def mean(self, values: Column) -> Estimate:
        """Mean of ``[n]`` values with its percentile interval."""
        return _estimate(float(values.mean()), self._means(values))

    def ratio(self, values: Column, base: Column) -> Estimate:
        """Mean of ``values`` / mean of ``base``; resamples where the latter is 0 do not count."""
        top, bottom = self._means(values), self._means(base)
        usable = bottom > 0
        return _estimate(float(values.mean() / base.mean()), top[usable] / bottom[usable])

    def difference(self, values: Column, base: Column) -> tuple[Estimate, float]:
        """Mean difference with its interval, and the two-sided bootstrap p value."""
        means = self._means(values - base)
        n = len(means)
        tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
        p = min(1.0, 2 * (tail + 1) / (n + 1))
        return _estimate(float((values - base).mean()), means), p


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(v) for v in corrected]


def _estimate(value: float, resampled: Column) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
