from hypothesis import given
from hypothesis import strategies as st

from earlytom.ops.segment import segment_official, segment_stream, static_frames
from earlytom.ops.similarity import FrameBand, measure_frames
from tests.ops.helpers import band_of, cosine, video

similarities = st.lists(st.floats(-1, 1), max_size=30)


@given(similarities, st.floats(-1, 1), st.floats(0, 1), st.none() | st.integers(1, 9))
def test_stream_segments_partition_the_frames(
    adjacent: list[float], tau: float, ema: float, cap: int | None
) -> None:
    groups = segment_stream(adjacent, tau, ema, cap)
    assert [i for a, b in groups for i in range(a, b + 1)] == list(range(len(adjacent) + 1))
    assert cap is None or max(b - a + 1 for a, b in groups) <= cap


@given(st.integers(1, 40), st.integers(0, 99), st.floats(-1, 1), st.floats(0, 1), st.integers(1, 9))
def test_official_segments_equal_a_naive_loop(
    n: int, seed: int, tau: float, ema: float, window: int
) -> None:
    x = video(n, seed=seed)
    band = measure_frames(x, window - 2)
    groups, start, reference, e = [], 0, x[0], 1.0
    margin = 1.0
    for i in range(1, n):
        e = ema * cosine(reference, x[i]) + (1 - ema) * e
        if i - start + 1 < window:
            margin = min(margin, abs(e - tau))
        if e < tau or i - start + 1 >= window:
            groups.append((start, i - 1))
            start, reference, e = i, x[i], 1.0
    groups.append((start, n - 1))
    if margin > 1e-5:
        assert segment_official(band, tau, ema, window) == tuple(groups)
    assert max(b - a + 1 for a, b in groups) <= max(1, window - 1)


def test_stream_by_hand() -> None:
    # e: 0.9*0.9+0.1=0.91, 0.9*0.5+0.1*0.91=0.541 -> cut at 2, e=1; 0.9*0.8+0.1=0.82
    assert segment_stream([0.9, 0.5, 0.8], tau=0.6, ema=0.9) == ((0, 1), (2, 3))
    # one cut does not cause the next: 0.5*0.62 + 0.5*1 = 0.81, not 0.5*0.62 + 0.5*0.525
    assert segment_stream([0.9, 0.1, 0.62], tau=0.6, ema=0.5) == ((0, 1), (2, 3))
    # ema=1: plain threshold; "below" is strict
    assert segment_stream([0.6, 0.59, 0.6], tau=0.6, ema=1.0) == ((0, 1), (2, 3))
    assert segment_stream([], 0.5, 0.9) == ((0, 0),)
    assert segment_stream([1.0] * 4, 0.5, 0.9, max_window=2) == ((0, 1), (2, 3), (4, 4))


def test_official_by_hand() -> None:
    # the reference is the first frame of the segment, so slow drift is cut
    band = FrameBand(4, ((0.9, 0.9, 0.9), (0.5, 0.5), (0.1,)))
    assert segment_official(band, 0.6, 1.0, 6) == ((0, 1), (2, 3))
    assert segment_stream(band.adjacent(), 0.6, 1.0) == ((0, 3),)
    # the window closes one frame early
    still = FrameBand(7, ((1.0,) * 6, (1.0,) * 5, (1.0,) * 4, (1.0,) * 3))
    assert segment_official(still, 0.6, 0.9, 6) == ((0, 4), (5, 6))


def test_static_frames() -> None:
    assert static_frames(((0, 3), (4, 4), (5, 6))) == [False, True, True, *[False] * 4]
    assert band_of([]).adjacent() == ()
