import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from earlytom.ops.plan import MergePlan


def test_identity_returns_the_input_itself() -> None:
    x = torch.randn(3, 2)
    assert MergePlan.identity(3).apply(x) is x
    assert MergePlan.identity(3).is_identity


def test_pure_copies_are_bit_equal_and_never_read_members_of_weight_zero() -> None:
    x = torch.randn(4, 3, 5).bfloat16()
    x[1] = torch.nan
    plan = MergePlan(4, ((0, 1), (2, 3)), ((1.0, 0.0), (0.0, 1.0)))
    assert torch.equal(plan.apply(x), x[[0, 3]])
    assert not plan.is_identity


def test_padding_of_short_rows_does_not_read_other_frames() -> None:
    x = torch.ones(6, 2)
    x[0] = torch.nan  # a frame that is dropped
    plan = MergePlan(6, ((1, 2, 3), (4, 5)), ((0.2, 0.3, 0.5), (0.5, 0.5)))
    assert torch.allclose(plan.apply(x), torch.ones(2, 2))


@given(st.integers(0, 10**6))
def test_apply_equals_the_dense_matrix(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 2, 3, generator=g, dtype=torch.float64)
    w = float(torch.rand(1, generator=g)) * 3 - 1  # official weights may leave [0, 1]
    plan = MergePlan(6, ((0,), (1, 2), (3, 4, 5)), ((1.0,), (w, 1 - w), (0.25, 0.25, 0.5)))
    dense = torch.einsum("nt,tsd->nsd", plan.dense(), x)
    assert torch.allclose(plan.apply(x), dense, atol=1e-12)


def test_apply_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(9, 3, 5)
    members = ((0, 1), (2,), (3, 4, 5), (6, 7), (8,))
    weights = ((0.5, 0.5), (1.0,), (0.2, 0.3, 0.5), (0.9, 0.1), (1.0,))
    plan = MergePlan(9, members, weights)
    whole = plan.apply(x)
    monkeypatch.setattr("earlytom.ops.plan.CHUNK_BYTES", 1)
    assert torch.equal(plan.apply(x), whole)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.integers(0, 99),
)
def test_overwriting_gives_the_same_bits(sizes: list[int], dtype: torch.dtype, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    members = tuple(tuple(range(e - k, e)) for e, k in zip(ends, sizes, strict=True))
    weights = []
    for row in members:  # copies of the first or the last member, and sums
        kind = int(torch.randint(3, (1,), generator=g))
        one = [float(i == (0 if kind else len(row) - 1)) for i in range(len(row))]
        weights.append(tuple(one) if kind < 2 else (1 / len(row),) * len(row))
    plan = MergePlan(ends[-1], members, tuple(weights))
    x = torch.randn(ends[-1], 2, 3, generator=g).to(dtype)
    plain = plan.apply(x)
    over = plan.apply(x.clone(), overwrite=True)
    assert torch.equal(over, plain)
    assert over.dtype == plain.dtype
    y = x.clone()
    assert plan.apply(y, overwrite=True).data_ptr() == y.data_ptr()


def test_what_is_still_needed_is_not_overwritten() -> None:
    x = torch.randn(4, 2, 3)
    turned = MergePlan(4, ((2,), (0, 1)), ((1.0,), (0.5, 0.5)))
    again = MergePlan(4, ((0, 2), (0, 3)), ((0.5, 0.5), (0.5, 0.5)))
    for plan in (turned, again):
        y = x.clone()
        assert torch.equal(plan.apply(y, overwrite=True), plan.apply(x))
        assert torch.equal(y, x)
    wide = torch.randn(4, 2, 6)[..., ::2]
    before, pair = wide.clone(), MergePlan(4, ((0, 1), (2, 3)), ((0.5, 0.5), (0.0, 1.0)))
    assert torch.equal(pair.apply(wide, overwrite=True), pair.apply(before))
    assert torch.equal(wide, before)


def test_then_composes_and_keeps_members_of_weight_zero() -> None:
    first = MergePlan(4, ((0, 1), (2,), (3,)), ((1.0, 0.0), (1.0,), (1.0,)))
    both = first.then(MergePlan(3, ((0, 1), (2,)), ((0.5, 0.5), (1.0,))))
    assert both.members == ((0, 1, 2), (3,))
    assert both.weights == ((0.5, 0.0, 0.5), (1.0,))


def test_at_least_cuts_the_largest_groups_in_the_middle() -> None:
    plan = MergePlan(7, ((0, 1), (2, 3, 4, 5), (6,)), ((0.5, 0.5), (1.0, 0.0, 0.0, 0.0), (1.0,)))
    assert plan.at_least(3) is plan
    four = plan.at_least(4)
    assert four.members == ((0, 1), (2, 3), (4, 5), (6,))
    assert four.weights == ((0.5, 0.5), (1.0, 0.0), (1.0, 0.0), (1.0,))
    assert plan.at_least(5).members == ((0,), (1,), (2, 3), (4, 5), (6,))
    assert plan.at_least(99).members == tuple((i,) for i in range(7))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 40))
def test_at_least_leaves_a_plan_of_ascending_places(sizes: list[int], n: int) -> None:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    members = tuple(tuple(range(e - k, e)) for e, k in zip(ends, sizes, strict=True))
    plan = MergePlan(ends[-1], members, tuple((1 / len(m),) * len(m) for m in members))
    more = plan.at_least(n)
    assert more.n_output == max(len(sizes), min(n, ends[-1]))
    assert [m for row in more.members for m in row] == list(range(ends[-1]))
    assert all(abs(sum(row) - 1) < 1e-9 for row in more.weights)


def test_wrong_number_of_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="merges 3 frames, got 4"):
        MergePlan.identity(3).apply(torch.zeros(4, 1))
