from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from earlytom.ops.merge import plan_official, plan_paper
from earlytom.ops.segment import segment_official, segment_stream
from earlytom.ops.similarity import FrameBand, measure_frames
from tests.ops.helpers import assert_stochastic, cosine, video

similarities = st.lists(st.floats(-1, 1), max_size=30)


@given(similarities, st.floats(-1, 1), st.floats(-1, 1), st.booleans())
def test_paper_rows_are_convex_and_represent_every_frame_in_order(
    adjacent: list[float], tau: float, tau_merge: float, average: bool
) -> None:
    groups = segment_stream(adjacent, tau, 0.9)
    plan = plan_paper(adjacent, groups, tau_merge, average)
    assert_stochastic(plan)
    pinned = {i for group in groups for i in group}
    assert all((i,) in plan.members for i in pinned)
    assert plan.groups == groups


def test_paper_by_hand() -> None:
    # F0 | F1 F2 F3 F4 | F5: s1=.9 > s2=.6 merges F1, F2; s3=.8 > s4=.5 (to the tail) merges F3, F4
    plan = plan_paper([0.5, 0.9, 0.6, 0.8, 0.5], ((0, 5),), 0.55)
    assert plan.members == ((0,), (1, 2), (3, 4), (5,))
    assert plan.weights[1] == pytest.approx((0.9 / 1.5, 0.6 / 1.5))
    assert plan.weights[2] == pytest.approx((0.8 / 1.3, 0.5 / 1.3))


def test_paper_needs_both_conditions() -> None:
    unmerged = ((0,), (1,), (2,), (3,))
    assert plan_paper([0.5, 0.9, 0.95], ((0, 3),), 0.55).members == unmerged  # s1 < s2
    assert plan_paper([0.5, 0.5, 0.2], ((0, 3),), 0.55).members == unmerged  # s1 < tau_merge
    # the tail is never a partner: F1 alone between head and tail stays
    assert plan_paper([0.9, 0.9], ((0, 2),), 0.1).members == ((0,), (1,), (2,))


def test_paper_negative_similarity_stays_convex() -> None:
    assert plan_paper([0.5, 0.4, -0.5], ((0, 3),), 0.1).weights[1] == (1.0, 0.0)
    assert plan_paper([0.5, -0.1, -0.5], ((0, 3),), -0.9).weights[1] == (0.5, 0.5)


def fine(f: list[Tensor], tau: float) -> Iterator[Tensor]:
    """The released ``fine_segment`` in words of the specification."""
    j, m = 0, len(f)
    while j < m - 1:
        s = cosine(f[j], f[j + 1])
        has_next = j + 1 <= m - 2
        following = cosine(f[j + 1], f[j + 2]) if has_next else 0
        if s > tau and (not has_next or s > following):
            w = s / (s + following) if following != 0 else 1
            yield w * f[j] + (1 - w) * f[j + 1]
            j += 2
        else:
            yield f[j]
            j += 1


@given(st.integers(1, 40), st.integers(0, 500), st.integers(2, 9), st.booleans())
def test_official_merge_equals_a_naive_loop(n: int, seed: int, window: int, average: bool) -> None:
    x = video(n, seed=seed)
    band = measure_frames(x, window - 2)
    groups = segment_official(band, 0.2, 0.9, window)
    out: list[Tensor] = []
    for a, b in groups:
        seg = list(x[a : b + 1])
        if len(seg) <= 2:
            out += seg
            continue
        middle = seg[1:-1]
        if len(middle) >= 2:
            mean = [torch.stack(middle).mean(0)]
            middle = mean if average else list(fine(middle, cosine(seg[0], seg[-1])))
        out += [seg[0], *middle, seg[-1]]
    merged = plan_official(band, groups, average).apply(x)
    assert merged.shape[0] == len(out)
    assert torch.allclose(merged, torch.stack(out), atol=1e-4, rtol=1e-4)


def test_official_loses_the_last_middle_frame() -> None:
    band = FrameBand(4, ((0.9,) * 3, (0.8,) * 2, (0.5,)))
    plan = plan_official(band, ((0, 3),))
    assert plan.members == ((0,), (1, 2), (3,))
    assert plan.weights[1] == (1.0, 0.0)
    unmerged = FrameBand(4, ((0.9, 0.1, 0.9), (0.8,) * 2, (0.5,)))
    assert plan_official(unmerged, ((0, 3),)).members == ((0,), (1,), (3,))


def test_official_weights_may_leave_the_unit_interval() -> None:
    band = FrameBand(5, ((0.5, 0.5, -0.25, 0.5), (0.0,) * 3, (0.0,) * 2, (0.0,)))
    assert plan_official(band, ((0, 4),)).weights[1] == (2.0, -1.0)
    zero = FrameBand(5, ((0.5, 0.5, -0.5, 0.5), (0.0,) * 3, (0.0,) * 2, (0.0,)))
    assert plan_official(zero, ((0, 4),)).weights[1] == (1.0, 0.0)
