import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from earlytom.ops.raters import (
    best_per_group,
    position_logits,
    recycle,
    recycled_counts,
    split_kept,
    text_raters,
    unbiased_score,
)
from earlytom.ops.shares import scaled_layers, stage_shares
from earlytom.ops.tensors import exact


@pytest.mark.parametrize("max_bytes", [1, 1 << 26])
def test_raters_are_the_words_the_video_is_about(max_bytes: int) -> None:
    g = torch.Generator().manual_seed(0)
    visual, text = torch.randn(50, 8, generator=g), torch.randn(7, 8, generator=g)
    text[[1, 4]] = visual[:2] * 3
    share = (visual @ text.mT).softmax(1).mean(0)
    expected = [i for i, s in enumerate(share.tolist()) if s > 1 / 7]
    assert text_raters(visual, text, max_bytes).tolist() == expected
    assert {1, 4} <= set(expected)


def test_everyone_rates_if_nobody_stands_out() -> None:
    assert text_raters(torch.randn(5, 4), torch.ones(1, 4)).tolist() == [0]
    assert text_raters(torch.randn(5, 4), torch.ones(4, 4)).tolist() == [0, 1, 2, 3]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def test_position_logits_are_those_of_all_one_queries_and_keys() -> None:
    angle = torch.arange(9.0)[:, None] / 10 ** (torch.arange(3).repeat(2) / 3)
    cos, sin = angle.cos(), angle.sin()
    rotated = rotate(torch.ones(9, 6), cos, sin)
    queries = torch.tensor([4, 8])
    expected = rotated[queries] @ rotated.mT / 6**0.5
    torch.testing.assert_close(position_logits((cos, sin), queries), expected)


def test_unbiased_score_trusts_the_strongest_heads() -> None:
    attention = torch.rand(5, 2, 6)
    attention[3] *= 10
    position = torch.rand(2, 6) + 0.5
    expected = (attention[3] / position).mean(0)
    torch.testing.assert_close(unbiased_score(attention, position, 1), expected)
    everything = (attention / position).mean((0, 1))
    torch.testing.assert_close(unbiased_score(attention, position, 14), everything)


@given(st.integers(1, 5000), st.data())
def test_split_kept_adds_up(present: int, data: st.DataObject) -> None:
    total = data.draw(st.integers(1, present))
    kept, made = split_kept(present, total)
    assert kept + made == total
    assert kept >= made >= 0
    if 2 * recycled_counts(present)[1] <= total < present:  # as released
        assert made == recycled_counts(present - kept)[1]


def test_recycled_tokens_are_means_of_the_best_pruned() -> None:
    g = torch.Generator().manual_seed(0)
    centre = torch.eye(4)[[0, 1, 2]] * 10
    states = centre.repeat_interleave(8, 0) + torch.randn(24, 4, generator=g) * 0.1
    states = torch.cat([states, torch.full((6, 4), 50.0)])
    score = torch.cat([torch.rand(24, generator=g) + 1, torch.zeros(6)])
    order, centres, means = recycle(states, score, taken=24, count=3, neighbours=5)
    assert sorted(order.tolist()) == list(range(24))
    assert (score[order].diff() <= 0).all()
    assert sorted(c // 8 for c in centres.tolist()) == [0, 1, 2]
    for c, mean in zip(centres.tolist(), means, strict=True):
        torch.testing.assert_close(mean, states[c // 8 * 8 : c // 8 * 8 + 8].mean(0))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.floats(0.05, 1), st.integers(0, 99))
def test_best_per_group(groups: list[int], share: float, seed: int) -> None:
    group = torch.tensor(groups)
    score = torch.rand(len(groups), generator=torch.Generator().manual_seed(seed))
    mask = best_per_group(score, group, share, None)
    for number in set(groups):
        inside = (group == number).nonzero().flatten()
        best = inside[score[inside].argsort(descending=True)][: int(share * len(inside))]
        assert sorted(best.tolist()) == inside[mask[inside]].tolist()
    total = max(1, int(share * len(groups)))
    mask = best_per_group(score, group, share, total)
    assert int(mask.sum()) == total
    for number in set(groups):
        inside = group == number
        wanted = total * int(inside.sum()) / len(groups)
        assert abs(int(mask[inside].sum()) - wanted) < 1
        if mask[inside].any() and not mask[inside].all():
            assert score[inside & mask].min() >= score[inside & ~mask].max()


# ---------------------------------------------------------------------- layers and shares
def test_scaled_layers() -> None:
    assert scaled_layers((2, 6, 15), 32, 32) == (2, 6, 15)
    assert scaled_layers((2, 6, 15), 32, 28) == (2, 5, 13)
    assert scaled_layers((2, 6, 15), 32, 4) == (0, 1, 2)
    assert scaled_layers((2, 6, 15), 32, 3) == (0, 1)
    assert scaled_layers((2, 6, 15), 32, 1) == ()


@given(st.integers(4, 40), st.integers(1, 999), st.data())
def test_stage_shares_average_to_the_ratio(n_layers: int, part: int, data: st.DataObject) -> None:
    first = sorted(data.draw(st.sets(st.integers(1, n_layers - 1), min_size=1, max_size=3)))
    profile = (300, 200, 110)[: len(first)]
    ratio = exact(part / 1000)
    if ratio * n_layers <= first[0]:
        with pytest.raises(ValueError, match="alone cost"):
            stage_shares(ratio, n_layers, first, profile)
        return
    shares = stage_shares(ratio, n_layers, first, profile)
    ends = [*first[1:], n_layers]
    cost = first[0] + sum(s * (b - a) for s, a, b in zip(shares, first, ends, strict=True))
    assert cost == ratio * n_layers
    assert all(0 < s <= 1 for s in shares)
    assert shares == sorted(shares, reverse=True)
    below = [(s, p) for s, p in zip(shares, profile, strict=True) if s < 1]
    assert len({s / p for s, p in below}) <= 1, "the proportions are the published ones"
