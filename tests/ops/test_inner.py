import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from earlytom.ops.inner import inner_merge


def naive(hidden: Tensor, rows: Tensor, place: Tensor, count: int, mode: str) -> tuple:
    score = rows.mean(0)[place]
    kept = place[score.topk(count).indices].sort().values
    rest = [p for p in place.tolist() if p not in kept.tolist()]
    out = hidden.clone()
    members: dict[int, list[int]] = {}
    for p in rest:
        target = int(kept[F.cosine_similarity(hidden[p][None], hidden[kept], dim=-1).argmax()])
        out[target] = (out[target] + hidden[p]) / 2
        members.setdefault(target, [target]).append(p)
    if mode == "mean":
        for target, all_of in members.items():
            out[target] = hidden[all_of].mean(0)
    index = [i for i in range(len(hidden)) if i not in rest]
    return index, out[index]


@given(st.integers(1, 40), st.integers(0, 999), st.sampled_from(["sequential", "mean"]), st.data())
def test_closed_form_equals_the_sequential_loop(
    n_visual: int, seed: int, mode: str, data: st.DataObject
) -> None:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n_visual + 9, 6, generator=g)
    rows = torch.rand(3, n_visual + 9, generator=g)
    place = torch.randperm(n_visual + 9, generator=g)[:n_visual].sort().values  # several spans
    count = data.draw(st.integers(1, n_visual))
    index, states = inner_merge(hidden, rows, place, count, mode)
    expected_index, expected = naive(hidden, rows, place, count, mode)
    assert index.tolist() == expected_index
    assert torch.allclose(states, expected, atol=1e-5)


def test_hundreds_of_sources_do_not_overflow() -> None:
    hidden = torch.randn(600, 4)
    index, states = inner_merge(hidden, torch.rand(2, 600), torch.arange(600), 1)
    assert index.numel() == 1
    assert torch.isfinite(states).all()
    assert torch.allclose(states[0], hidden[-1] * 0.5, atol=5)


def test_text_and_kept_tokens_without_sources_are_bit_equal() -> None:
    hidden = torch.randn(10, 4).bfloat16()
    index, states = inner_merge(hidden, torch.rand(2, 10), torch.arange(2, 7), 5)
    assert torch.equal(index, torch.arange(10))
    assert torch.equal(states, hidden)


def test_wrong_arguments() -> None:
    for count, mode in ((0, "mean"), (3, "mean"), (1, "median")):
        with pytest.raises(ValueError):
            inner_merge(torch.zeros(4, 2), torch.zeros(1, 4), torch.arange(2), count, mode)
