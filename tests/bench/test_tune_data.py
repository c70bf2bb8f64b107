"""Clips to search on and held-out clips have nothing in common."""

import numpy as np
import pytest

from earlytom.bench.suite import SPLITS, build_split
from earlytom.bench.tune import FIRST_TUNING_SEED, LAST_HELD_OUT_SEED
from earlytom.bench.tune.data import check_disjoint, held_out_clips, tuning_clips
from earlytom.errors import ConfigError
from earlytom.tiny.held_out import _SEED_STEP

FEW = 12


@pytest.mark.parametrize("split", list(SPLITS))
def test_no_shot_is_on_both_sides(split):
    for seed in (0, 1, 2):  # the same number names different clips
        tuning = tuning_clips([split], seed, FEW).clips
        check_disjoint(tuning, held_out_clips([split], seed, FEW).clips)
        with pytest.raises(ConfigError, match="use other seeds"):
            check_disjoint(tuning, tuning[-1:])


def test_seed_ranges_cannot_meet():
    # a clip set numbers its clips on from its seed towards the next one
    most_clips = 200 * 100_000 + 2000
    gap = (FIRST_TUNING_SEED - LAST_HELD_OUT_SEED) * _SEED_STEP
    assert gap > most_clips
    for bad in (-1, LAST_HELD_OUT_SEED + 1, FIRST_TUNING_SEED, FIRST_TUNING_SEED + 7):
        with pytest.raises(ConfigError, match="set apart"):
            held_out_clips(["standard"], bad, FEW)
    with pytest.raises(ConfigError, match=">= 0"):
        tuning_clips(["standard"], -FIRST_TUNING_SEED + 1, FEW)


def test_held_out_clips_are_those_of_the_benchmark():
    ours = held_out_clips(["standard"], 1, FEW).clips
    theirs = build_split("standard", 1, FEW)
    assert [c.questions for c in ours] == [c.questions for c in theirs]
    np.testing.assert_array_equal(ours[0].render(), theirs[0].render())


def test_tuning_clips_are_shuffled_and_repeatable():
    sample = tuning_clips(["standard", "detail"], 3, FEW)
    again = tuning_clips(["standard", "detail"], 3, FEW)
    assert [c.questions for c in sample.clips] == [c.questions for c in again.clips]
    assert [c.number for c in sample.clips] == list(range(len(sample.clips)))
    assert sorted(set(sample.splits)) == ["detail", "standard"]
    assert sample.splits != sorted(sample.splits)
    assert sample.splits == again.splits
    for bad in ([], ["standard", "standard"], ["magic"]):
        with pytest.raises(ConfigError):
            tuning_clips(bad, 0, FEW)
