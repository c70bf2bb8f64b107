import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from earlytom.ops import correlate
from earlytom.ops.correlate_released import ScoreGrid


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5))
def test_joined_heads_give_mean_logits(heads: int, n: int, width: int) -> None:
    q, k = random(2, heads, n, width), random(2, heads, n, width, seed=1)
    query, key = correlate.joined_heads(q, k, 0.7)
    torch.testing.assert_close(query @ key.mT, (0.7 * q @ k.mT).mean(1))


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_least_of_window_equals_a_loop(n: int, windows: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    score = torch.randint(-3, 3, (2, n), generator=g) / 4  # ties
    window = torch.randint(0, windows, (2, n), generator=g)
    got = correlate.least_of_window(score, window, windows)
    for t in range(2):
        expected = set()
        for w in range(windows):
            members = (window[t] == w).nonzero().flatten().tolist()
            if members:
                expected.add(min(members, key=lambda i: (float(score[t, i]), i)))
        assert set(got[t].nonzero().flatten().tolist()) == expected


def test_favour_lowers_a_score() -> None:
    score = torch.tensor([[0.5, -0.5, 0.5, -0.5, 0.0]])
    mask = torch.tensor([[True, True, False, False, True]])
    assert correlate.favour(score, mask).tolist() == [[0.25, -1.0, 0.5, -0.5, 0.0]]


@given(st.integers(1, 1500), st.integers(0, 99))
def test_number_of_targets_is_what_a_quantile_leaves(n: int, seed: int) -> None:
    values = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).double()
    above = int((values > values.quantile(0.998)).sum())
    expected = correlate.targets_per_token(n, 0.998)
    # one rank may fall on either side where 0.998 (n - 1) is an integer
    assert abs(expected - max(1, above)) <= (499 * (n - 1) % 500 == 0)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 99), st.data())
def test_targets_are_the_largest_of_the_softmax(
    r: int, m: int, seed: int, data: st.DataObject
) -> None:
    rows, key = random(2, r, 3, seed=seed), random(2, m, 3, seed=seed + 1)
    count = data.draw(st.integers(1, m))
    target, weight = correlate.strongest_targets(rows, key, count)
    top = torch.softmax(rows @ key.mT, -1).topk(count)
    assert torch.equal(target, top.indices)
    torch.testing.assert_close(weight, top.values / top.values.sum(-1, keepdim=True))
    sent = correlate.sent_weights(target, weight, m)
    assert sent.shape == (2, m, r)
    torch.testing.assert_close(sent.sum(1), torch.ones(2, r))


def test_score_grid_uses_a_cell_of_every_window_up() -> None:
    grid = ScoreGrid(2, (4, 4), torch.device("cpu"))
    score = torch.arange(16.0).expand(2, -1)
    first = grid.favoured(score)
    assert first.nonzero()[:, 1].tolist() == [0, 2, 8, 10] * 2
    # the 12 cells left are filled in order; the smallest of the first window is now in cell 1
    second = grid.favoured(score[:, :12])
    assert second[0].nonzero().flatten().tolist() == [1, 3, 9, 11]
    for _ in range(2):
        grid.favoured(score[:, :8])
    # used up: the first cell of every window, whatever the scores
    assert grid.favoured(-score).nonzero()[:, 1].tolist() == [0, 2, 8, 10] * 2


def test_informative_prefers_what_is_looked_at() -> None:
    column, row = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    got = correlate.informative(column, row, 0.35)
    assert got[0].tolist() == pytest.approx([0.35 * 0.6 - 0.65 * 0.8, 0.35 * 0.8 - 0.65 * 0.6])
