from fractions import Fraction
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earlytom.ops.budget import (
    choose_pairs,
    encoder_share,
    frame_schedule,
    needed_width,
    plan_budget,
    rounds,
    spread,
)
from earlytom.ops.similarity import measure_frames
from tests.ops.helpers import assert_stochastic, video

# multiples of 1/8 add exactly, so ties are real ties
eighths = st.lists(st.integers(-8, 8).map(lambda i: i / 8), min_size=0, max_size=9)


@given(eighths, st.data())
def test_pairs_are_optimal_and_ties_go_to_the_lowest_index(
    similarity: list[float], data: st.DataObject
) -> None:
    n = len(similarity) + 1
    count = data.draw(st.integers(0, n // 2))
    valid = [
        c for c in combinations(range(n - 1), count) if all(b - a >= 2 for a, b in pairwise(c))
    ]
    best = min(valid, key=lambda c: (-sum(similarity[i] for i in c), c))
    assert choose_pairs(similarity, count) == best


def test_too_many_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="room for 2"):
        choose_pairs([1.0] * 4, 3)


def test_pairs_by_hand() -> None:
    # greedy would take 0.9 and be left with 0.1; the best two are 0.8 + 0.7
    assert choose_pairs([0.8, 0.9, 0.7], 2) == (0, 2)
    assert choose_pairs([0.8, 0.9, 0.7], 1) == (1,)
    assert choose_pairs([1.0] * 5, 2) == (0, 2)


@given(st.integers(1, 40), st.data(), st.sampled_from(["average", "first"]))
def test_plan_has_exactly_the_frames_asked_for(n: int, data: st.DataObject, fuse: str) -> None:
    target = data.draw(st.integers(1, n))
    counts = data.draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))
    x = video(n, patches=3, dim=4, seed=n)
    plan = plan_budget(measure_frames(x, needed_width(n, target)), target, counts, fuse)
    assert plan.n_output == target
    assert_stochastic(plan)
    for members, weights in zip(plan.members, plan.weights, strict=True):
        if fuse == "first":
            assert weights == (1.0, *[0.0] * (len(members) - 1))
        else:
            total = sum(counts[m] for m in members)
            assert weights == tuple(counts[m] / total for m in members)


def test_identical_frames_are_fused_from_the_front() -> None:
    x = video(1).repeat(6, 1, 1)
    plan = plan_budget(measure_frames(x, 1), 4, [1] * 6, "first")
    assert plan.members == ((0, 1), (2, 3), (4,), (5,))


def test_bad_targets_are_refused() -> None:
    band = measure_frames(video(4), 1)
    for target, fuse in ((0, "first"), (5, "first"), (3, "mean")):
        with pytest.raises(ValueError):
            plan_budget(band, target, [1] * 4, fuse)


def test_rounds() -> None:
    assert rounds(16, 10) == (6,)
    assert rounds(16, 3) == (8, 4, 1)
    assert rounds(5, 5) == ()
    assert [needed_width(16, t) for t in (16, 10, 8, 7, 3, 1)] == [0, 1, 1, 2, 4, 8]


@given(
    st.integers(1, 200),
    st.integers(1, 30),
    st.fractions(min_value=Fraction(1, 20), max_value=1),
    st.integers(1, 30),
    st.data(),
)
def test_schedule_fits_the_share_or_is_at_its_minimum(
    n: int, layers: int, share: Fraction, minimum: int, data: st.DataObject
) -> None:
    points = sorted(data.draw(st.sets(st.integers(0, layers - 1), max_size=4)))
    frames = frame_schedule(n, layers, points, share, minimum)
    least = min(minimum, n)
    assert len(frames) == len(points)
    assert all(least <= f <= n for f in frames)
    assert list(frames) == sorted(frames, reverse=True)
    assert encoder_share(n, layers, points, frames) <= share or set(frames) <= {least}


def test_schedule_by_hand() -> None:
    # 16*2 + 10*3 + 7*7 = 111 of 192 layer-frames
    assert encoder_share(16, 12, (1, 4), (10, 7)) == Fraction(111, 192)
    assert frame_schedule(16, 12, (1, 4), Fraction(111, 192)) == (10, 7)
    assert frame_schedule(16, 12, (1, 4), Fraction(1)) == (16, 16)
    assert frame_schedule(16, 12, (1, 4), Fraction(6, 10), minimum=9) == (9, 9)
    assert frame_schedule(16, 12, (), Fraction(6, 10)) == ()


@given(st.integers(0, 1000), st.integers(1, 50))
def test_spread(total: int, n: int) -> None:
    parts = spread(total, n)
    assert sum(parts) == total
    assert len(parts) == n
    assert max(parts) - min(parts) <= 1
