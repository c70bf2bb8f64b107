import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from earlytom.ops.fusion import (
    FIRST,
    allowed_sparsity,
    collapse_runs,
    similarity_in_time,
    time_order,
    top_mask,
)


@given(st.integers(0, 999), st.integers(1, 40))
def test_time_order_follows_places_within_a_video(seed: int, count: int) -> None:
    g = torch.Generator().manual_seed(seed)
    patch = torch.randint(-2, 5, (count,), generator=g)
    patch[patch == -1] = 0
    video = torch.randint(0, 2, (count,), generator=g).sort().values
    order, follows = time_order(video, patch)
    assert sorted(order.tolist()) == list(range(count))
    rows = torch.randn(count, 4, generator=g)
    similar = similarity_in_time(rows[order], follows)
    for i, column in enumerate(order.tolist()):
        same = (video == video[column]) & (patch == patch[column]) & (patch[column] >= 0)
        earlier = [c for c in same.nonzero().flatten().tolist() if c < column]
        assert bool(follows[i]) == bool(earlier)
        if earlier:
            assert int(order[i - 1]) == earlier[-1]
            expected = F.cosine_similarity(rows[column], rows[earlier[-1]], dim=0)
            torch.testing.assert_close(similar[i], expected, atol=1e-5, rtol=1e-5)
        else:
            assert similar[i] == FIRST


@given(st.lists(st.booleans(), min_size=0, max_size=30), st.integers(0, 99))
def test_runs_collapse_into_the_row_in_front(joined: list[bool], seed: int) -> None:
    mask = torch.tensor([False, *joined])
    rows = torch.randn(len(mask), 3, generator=torch.Generator().manual_seed(seed))
    out = collapse_runs(rows, mask)
    start = 0
    for end in range(1, len(mask) + 1):
        if end == len(mask) or not mask[end]:
            torch.testing.assert_close(out[start], rows[start:end].mean(0))
            if end == start + 1:
                assert torch.equal(out[start], rows[start])
            start = end


def test_half_precision_rows_are_averaged_in_float32() -> None:
    rows = torch.full((4097, 1), 1.0009765625, dtype=torch.float16)
    out = collapse_runs(rows, torch.arange(4097) > 0)
    assert out.dtype == torch.float16
    assert out[0] == rows[0]


def test_top_mask_ties_go_to_the_lowest_index() -> None:
    assert top_mask(torch.tensor([1.0, 2, 1, 2, 1]), 3).tolist() == [True, True, False, True, False]
    assert not top_mask(torch.tensor([1.0]), 0).any()


@given(st.floats(0.05, 1), st.integers(2, 40), st.lists(st.floats(0, 0.9), max_size=6))
def test_allowed_sparsity_uses_the_budget_up(
    ratio: float, n_layers: int, sparsity: list[float]
) -> None:
    sparsity = sparsity[: n_layers - 1]
    shares, share = [], 1.0
    for removed in sparsity:
        share *= 1 - removed
        shares.append(share)
    if ratio * n_layers < sum(shares):
        with pytest.raises(ValueError, match="used up"):
            allowed_sparsity(ratio, n_layers, sparsity)
        return
    left = share * (1 - allowed_sparsity(ratio, n_layers, sparsity))
    total = sum(shares) + (n_layers - len(shares)) * left
    assert total <= ratio * n_layers + 1e-6
    assert left == share or total == pytest.approx(ratio * n_layers)
