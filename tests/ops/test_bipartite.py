import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from earlytom.ops.bipartite import match_halves, most_similar
from earlytom.ops.grouping import Grouping, blend
from tests.ops.helpers import LargestTensor


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(metric: Tensor, r: int, protected: int) -> list[int]:
    """Target of every token of one frame, pair by pair."""
    n = metric.shape[0]
    a, b = list(range(0, n, 2)), list(range(1, n, 2))
    partners = b[1:] if protected == 2 else b
    best = {}
    for i in a:
        cos = [float(torch.cosine_similarity(metric[i], metric[j], dim=0)) for j in partners]
        best[i] = (max(cos), partners[cos.index(max(cos))]) if cos else (-9.0, -1)
    free = a[1:] if protected else a
    gone = sorted(free, key=lambda i: (-best[i][0], i))[:r]
    left = [i for i in a if i not in gone]
    if not protected:
        left.sort(key=lambda i: (-best[i][0], i))
    order = left + b
    if protected == 2:
        order = [left[0], b[0], *left[1:], *b[1:]]
    if r == 0:
        order = list(range(n))
    return [order.index(best[i][1] if i in gone else i) for i in range(n)]


@given(st.integers(1, 4), st.integers(3, 17), st.integers(0, 2), st.integers(0, 99), st.data())
def test_matching_equals_a_loop(
    frames: int, n: int, protected: int, seed: int, data: st.DataObject
) -> None:
    metric = random(frames, n, 5, seed=seed)
    r = data.draw(st.integers(0, (n - protected) // 2))
    target = match_halves(metric, r, protected).target(n)
    assert target.tolist() == [by_hand(frame, r, protected) for frame in metric]


def test_range_is_checked() -> None:
    with pytest.raises(ValueError, match="cannot merge 3 of 6 tokens, 1 of them protected"):
        match_halves(random(1, 6, 4), 3, 1)
    with pytest.raises(ValueError, match="cannot merge -1"):
        match_halves(random(1, 6, 4), -1)
    with pytest.raises(ValueError, match="protected must be 0, 1 or 2"):
        match_halves(random(1, 6, 4), 1, 3)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 200))
def test_chunks_do_not_change_the_match(frames: int, p: int, q: int, max_bytes: int) -> None:
    a, b = random(frames, p, 4, seed=1), random(frames, q, 4, seed=2)
    whole, parts = most_similar(a, b), most_similar(a, b, max_bytes)
    assert torch.equal(whole[1], parts[1])
    torch.testing.assert_close(whole[0], parts[0])


def test_similarities_are_stored_in_pieces() -> None:
    a = random(8, 64, 4)
    with LargestTensor() as meter:
        most_similar(a, a, 4 * 64 * 64)
    assert meter.bytes <= 4 * 64 * 64


def groups(frames: int, n: int, m: int, seed: int) -> Grouping:
    """Any grouping: ``m`` kept, some sources, the others dropped."""
    g = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(n, generator=g) for _ in range(frames)])
    r = int(torch.randint(0, n - m + 1, (), generator=g))
    into = torch.randint(0, m, (frames, r), generator=g)
    return Grouping(order[:, :m], order[:, m : m + r], into)


@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 99), st.data())
def test_merge_is_the_mean_over_patches(
    frames: int, n: int, seed: int, data: st.DataObject
) -> None:
    m = data.draw(st.integers(1, n))
    group = groups(frames, n, m, seed)
    x = random(frames, n, 4, seed=seed)
    size = torch.randint(1, 6, (frames, n), generator=torch.Generator().manual_seed(seed)).float()
    target, (out, out_size) = group.target(n), group.merge(x, size, max_bytes=1)
    for t in range(frames):
        for j in range(m):
            members = (target[t] == j).nonzero().flatten()
            weight = size[t, members]
            assert float(out_size[t, j]) == float(weight.sum())
            mean = (x[t, members] * weight[:, None]).sum(0) / weight.sum()
            torch.testing.assert_close(out[t, j], mean)
            if len(members) == 1:
                assert torch.equal(out[t, j], x[t, members[0]])


def test_half_precision_is_merged_in_float32() -> None:
    group = Grouping(
        torch.tensor([[0]]), torch.tensor([[1, 2]]), torch.zeros(1, 2, dtype=torch.long)
    )
    x = torch.tensor([60000.0, 60000.0, 59968.0], dtype=torch.float16).view(1, 3, 1)
    out, _ = group.merge(x, torch.ones(1, 3))
    assert out.dtype == torch.float16
    assert float(out) == float(x.float().mean().half())


def test_blend_leaves_rows_without_sources_alone() -> None:
    x = random(2, 3, 4).half()
    weights = torch.zeros(2, 3, 1)
    weights[:, 1] = 0.25
    out, total = blend(x, torch.ones(2, 3), random(2, 1, 4, seed=1).half(), weights)
    assert torch.equal(out[:, [0, 2]], x[:, [0, 2]])
    assert not torch.equal(out[:, 1], x[:, 1])
    assert total.tolist() == [[1.0, 1.25, 1.0]] * 2
