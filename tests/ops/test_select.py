import torch
from hypothesis import given
from hypothesis import strategies as st

from earlytom.ops import select

CPU = torch.device("cpu")


def scores(n: int, size: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 6, (n, size), generator=g) / 8  # many ties


@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 999), st.data())
def test_top_per_frame_equals_a_naive_loop(
    n: int, size: int, seed: int, data: st.DataObject
) -> None:
    score = scores(n, size, seed)
    counts = data.draw(st.lists(st.integers(0, size), min_size=n, max_size=n))
    mask = select.top_per_frame(score, counts)
    for row, picked, count in zip(score.tolist(), mask, counts, strict=True):
        best = sorted(range(size), key=lambda i: (-row[i], i))[:count]
        assert picked.nonzero().flatten().tolist() == sorted(best)


@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 999), st.data())
def test_top_per_window_equals_a_naive_loop(
    n: int, size: int, seed: int, data: st.DataObject
) -> None:
    score = scores(n, size, seed)
    counts = data.draw(st.lists(st.integers(0, size), min_size=n, max_size=n))
    mask = select.top_per_window(score, counts)
    for row, picked, count in zip(score.tolist(), mask, counts, strict=True):
        expected, start = [], 0
        for w in range(count):
            end = start + size // count + (w < size % count)
            expected.append(max(range(start, end), key=lambda i: (row[i], -i)))
            start = end
        assert picked.nonzero().flatten().tolist() == expected


@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 999), st.data())
def test_top_of_video_and_mask_index(n: int, size: int, seed: int, data: st.DataObject) -> None:
    score = scores(n, size, seed)
    count = data.draw(st.integers(1, n * size))
    index = select.mask_index(select.top_of_video(score, count), count)
    flat = score.flatten().tolist()
    assert index.tolist() == sorted(sorted(range(n * size), key=lambda i: (-flat[i], i))[:count])


@given(st.integers(1, 500), st.data())
def test_evenly(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, n))
    index = select.evenly(n, count, CPU).tolist()
    assert index == [int((i + 0.5) * n / count + 1e-9) for i in range(count)]
    assert len(set(index)) == count
    assert 0 <= index[0] <= index[-1] < n


def test_window_of_negative_infinity_still_gives_one_token() -> None:
    score = torch.full((1, 7), -torch.inf)
    assert int(select.top_per_window(score, [3]).sum()) == 3
