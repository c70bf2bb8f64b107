"""The paired cluster bootstrap against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from earlytom.bench.report.intervals import Resampler, holm


def clustered(seed: int, clips: int = 300, per_clip: int = 7) -> tuple[np.ndarray, ...]:
    """Clips, and right or wrong of two runs; answers of a clip and of both runs go together."""
    rng = np.random.default_rng(seed)
    clip = np.repeat(np.arange(clips), per_clip)
    ease = rng.normal(0, 0.15, clips)[clip]
    luck = rng.random(len(clip))
    first = (luck < 0.80 + ease).astype(float)
    second = (0.7 * luck + 0.3 * rng.random(len(clip)) < 0.74 + ease).astype(float)
    return clip, first, second


def test_paired_difference_has_the_width_of_the_closed_form():
    clip, first, second = clustered(0)
    estimate, p = Resampler(clip, 20_000, seed=1).difference(second, first)
    per_clip = np.bincount(clip, second - first) / np.bincount(clip)
    error = per_clip.std(ddof=1) / np.sqrt(len(per_clip))  # clips of equal size
    assert estimate.value == pytest.approx((second - first).mean())
    assert (estimate.high - estimate.low) / (2 * 1.96) == pytest.approx(error, rel=0.05)
    unpaired = np.sqrt(first.var() / len(first) + second.var() / len(second))
    assert error < unpaired
    z = abs(estimate.value) / error
    assert p == pytest.approx(np.exp(-0.717 * z - 0.416 * z * z), abs=0.03)  # normal tail, twice


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(3)
    hits = []
    for _ in range(250):
        clips = 60
        clip = np.repeat(np.arange(clips), 5)
        shift = rng.normal(0.05, 0.2, clips)[clip]  # differences of a clip go together
        values = shift + rng.normal(0, 0.4, len(clip))
        estimate, _ = Resampler(clip, 1000, seed=4).difference(values, np.zeros(len(clip)))
        hits.append(estimate.low <= 0.05 <= estimate.high)
    assert 0.89 <= np.mean(hits) <= 0.99


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
