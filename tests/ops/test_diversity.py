import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from earlytom.ops.diversity import (
    diverse_tokens,
    member_means,
    merge_rest,
    nearest_kept,
    owners,
)


def naive(x: Tensor, count: int) -> list[int]:
    unit = F.normalize(x.float(), dim=-1)
    centre = F.normalize(x.float().mean(1, keepdim=True), dim=-1)
    first = int((1 - (unit * centre).sum(-1)).argmax())
    rows, chosen = unit.flatten(0, 1), [first]
    while len(chosen) < count:
        distance = (1 - rows @ rows[chosen].mT).amin(1)
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return sorted(chosen)


@given(st.integers(1, 4), st.integers(1, 10), st.integers(0, 999), st.data())
def test_equals_a_naive_loop(n: int, size: int, seed: int, data: st.DataObject) -> None:
    x = torch.randn(n, size, 6, generator=torch.Generator().manual_seed(seed))
    count = data.draw(st.integers(1, n * size))
    assert diverse_tokens(x, count).tolist() == naive(x, count)
    assert diverse_tokens(x, count, max_bytes=0).tolist() == naive(x, count)


@pytest.mark.parametrize("max_bytes", [0, 1 << 20])
def test_identical_tokens_are_not_chosen_twice(max_bytes: int) -> None:
    for x in (torch.ones(2, 5, 3), torch.zeros(2, 5, 3), torch.full((2, 5, 3), 0.1).half()):
        assert diverse_tokens(x, 10, max_bytes).tolist() == list(range(10))
        assert len(set(diverse_tokens(x, 4, max_bytes).tolist())) == 4


def test_features_that_need_gradients() -> None:
    x = torch.randn(2, 5, 3, requires_grad=True)
    index = diverse_tokens(x, 3)
    merge_rest(x.flatten(0, 1), index)[0].sum().backward()
    assert x.grad is not None


@given(st.integers(0, 99), st.integers(-8, 8))
def test_scale_does_not_matter(seed: int, power: int) -> None:
    x = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(diverse_tokens(x, 5), diverse_tokens(x * 2.0**power, 5))


def test_every_distinct_scene_is_covered() -> None:
    scenes = torch.eye(4).repeat_interleave(5, 0)[None]
    assert {i // 5 for i in diverse_tokens(scenes, 4).tolist()} == {0, 1, 2, 3}


@given(st.integers(1, 2000), st.integers(0, 99))
def test_nearest_kept(max_bytes: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    others, kept = torch.randn(20, 4, generator=g), torch.randn(6, 4, generator=g)
    expected = (F.normalize(others, dim=-1) @ F.normalize(kept, dim=-1).mT).argmax(1)
    assert torch.equal(nearest_kept(others, kept, max_bytes), expected)


def test_merge_rest_is_the_mean_of_the_members() -> None:
    x = torch.tensor([[1.0, 0], [0, 1], [3, 0.1], [0.1, 5], [1, 0]])
    values, weight = merge_rest(x, torch.tensor([0, 3, 4]))
    # token 4 equals token 0, but both were chosen: each stays its own
    assert weight.tolist() == [2, 2, 1]
    assert torch.allclose(values, torch.stack([x[[0, 2]].mean(0), x[[1, 3]].mean(0), x[4]]))


def test_merge_rest_conserves_the_sum() -> None:
    x = torch.randn(30, 5)
    values, weight = merge_rest(x, torch.tensor([2, 9, 17]))
    assert torch.allclose((values * weight[:, None]).sum(0), x.sum(0), atol=1e-4)
    assert float(weight.sum()) == 30


def test_member_means_count_members_as_they_weigh() -> None:
    x = torch.tensor([[1.0], [2.0], [4.0], [8.0]]).half()
    owner = torch.tensor([0, 0, 1, 1])
    for max_bytes in (0, 1 << 20):
        mean, weight = member_means(x, owner, torch.tensor([1.0, 3.0, 1.0, 0.0]), 2, max_bytes)
        assert mean.tolist() == [[1.75], [4.0]]
        assert weight.tolist() == [4.0, 1.0]


def test_a_chosen_row_is_its_own_even_if_an_identical_one_was_chosen() -> None:
    x = torch.ones(4, 3)
    assert owners(x, torch.tensor([1, 3])).tolist() == [0, 0, 0, 1]
