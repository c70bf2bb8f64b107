from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from earlytom.errors import VideoError
from earlytom.video.sampling import MAX_FRAMES, Sampling, uniform


@given(st.integers(1, 5000), st.integers(1, 500))
def test_uniform_is_llavas_linspace_without_repeats(total, n):
    index = uniform(total, n)
    assert len(index) == min(n, total)
    assert index[0] == 0
    assert (np.diff(index) > 0).all()
    if n <= total:
        assert index.tolist() == np.linspace(0, total - 1, n, dtype=int).tolist()
    if n > 1:
        assert index[-1] == total - 1


@given(
    st.lists(st.integers(1, 300), max_size=60),
    st.floats(0.05, 60),
    st.none() | st.integers(1, 20),
)
def test_fps_takes_the_frame_on_screen(gaps, fps, most):
    pts = np.cumsum([7, *gaps])
    tick = Fraction(1, 100)
    index = Sampling(fps=fps, max_frames=most).pick(pts, tick)
    assert (np.diff(index) > 0).all()
    assert index[0] == 0
    assert most is None or len(index) <= most
    if most is None:
        seconds = np.arange(0, float(pts[-1] - pts[0]) / 100 + 1e-9, 1 / fps)
        for s in seconds:  # to within one tick of rounding
            shown = {int(np.searchsorted(pts, pts[0] + 100 * s + d, "right")) - 1 for d in (-1, 1)}
            assert shown & set(index.tolist()) or min(shown) + 1 in index


@given(st.integers(1, 400), st.integers(1, 60), st.sampled_from([24, 25, 30, 50]))
def test_sampling_by_time_names_the_same_frames(total, n, rate):
    tick = Fraction(1, 90000)
    pts = np.array([round(Fraction(i, rate) / tick) for i in range(total)])
    ask = Sampling(n)
    times = ask.times(round(Fraction(total, rate) / tick), Fraction(rate), tick)
    assert (np.searchsorted(pts, times, "right") - 1).tolist() == ask.pick(pts, tick).tolist()


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"frames": 0}, "integer >= 1"),
        ({"frames": -3}, "integer >= 1"),
        ({"frames": 2.5}, "integer >= 1"),
        ({"frames": True}, "integer >= 1"),
        ({"frames": MAX_FRAMES + 1}, "at most 4096"),
        ({"frames": 4, "fps": 1.0}, "not both"),
        ({"fps": 0}, "finite number > 0"),
        ({"fps": -1.0}, "finite number > 0"),
        ({"fps": float("nan")}, "finite number > 0"),
        ({"fps": float("inf")}, "finite number > 0"),
        ({"fps": "2"}, "finite number > 0"),
        ({"fps": 1.0, "max_frames": 0}, "integer >= 1"),
    ],
)
def test_bad_requests(kwargs, text):
    with pytest.raises(VideoError, match=text):
        Sampling(**kwargs)


def test_too_many_frames_by_rate():
    with pytest.raises(VideoError, match=r"asks for 1000\d\d frames"):
        Sampling(fps=1000).pick(np.array([0, 10000]), Fraction(1, 100))
