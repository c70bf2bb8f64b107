from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from earlytom.ops import schedule


def removed(n: int, counts: tuple[int, ...]) -> list[int]:
    return [a - b for a, b in pairwise((n, *counts))]


@given(st.integers(1, 30), st.integers(1, 800), st.integers(-10, 10), st.data())
def test_linear_counts(points: int, n: int, tenths: int, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, n))
    c = Fraction(tenths, 10)
    try:
        counts = schedule.linear_counts(points, n, wanted, c)
    except ValueError:
        usable = points - (points > 1 and abs(tenths) == 10)
        assert schedule.halvings(n, usable) > wanted
        return
    assert len(counts) == points
    assert counts[-1] == wanted
    for left, r in zip((n, *counts), removed(n, counts), strict=False):
        assert 0 <= r <= left // 2


def test_linear_counts_are_a_line_where_nothing_is_clamped() -> None:
    r = removed(729, schedule.linear_counts(26, 729, 105, Fraction(0)))
    assert r == [24] * 26
    r = removed(729, schedule.linear_counts(26, 729, 105, Fraction(-1, 2)))
    assert r[0] == 36
    assert r == sorted(r, reverse=True)
    assert all(abs(a - b) <= 2 for a, b in pairwise(r[:-1]))


@given(st.integers(1, 30), st.integers(1, 800), st.data())
def test_geometric_counts(points: int, n: int, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, n))
    if schedule.halvings(n, points) > wanted:
        with pytest.raises(ValueError, match="points cannot reduce"):
            schedule.geometric_counts(points, n, wanted)
        return
    counts = schedule.geometric_counts(points, n, wanted)
    assert counts[-1] == wanted
    for left, r in zip((n, *counts), removed(n, counts), strict=False):
        assert 0 <= 2 * r <= left


def test_geometric_counts_keep_a_share() -> None:
    counts = schedule.geometric_counts(26, 729, 182)
    ratio = (182 / 729) ** (1 / 26)
    assert all(abs(b / a - ratio) < 0.01 for a, b in pairwise((729, *counts)))


@given(st.integers(1, 30), st.integers(1, 800), st.data())
def test_equal_counts(points: int, n: int, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, n))
    r = removed(n, schedule.equal_counts(points, n, wanted))
    assert sum(r) == n - wanted
    assert max(r) - min(r) <= 1
    assert r == sorted(r, reverse=True)


@given(st.integers(1, 30), st.integers(1, 800), st.integers(-10, 10), st.data())
def test_ported_counts(points: int, n: int, tenths: int, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, n))
    assume(points > 1)
    counts = schedule.ported_counts(points, n, wanted, tenths / 10)
    assert counts[-1] == wanted
    assert min(removed(n, counts)) >= 0


def test_released_rates() -> None:
    assert schedule.parse_rate(4, 6, -0.5) == (9, 7, 5, 3)
    assert schedule.parse_rate(3, 5, 1.0) == (0, 5, 10)
    assert schedule.parse_rate(3, 8, 0.0) == (8, 8, 8)
    assert sum(schedule.parse_rate(26, 24, -0.5)) == 612
