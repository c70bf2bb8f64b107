"""Choosing tokens that differ, and the nearest kept ones.

Farthest points are equal for the same table. The nearest kept token may be another one if two are
equally near up to float32 rounding: its cosine may be 1e-6 below the best.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from earlytom import kernels
from earlytom.kernels import MAX_POINTS
from earlytom.ops import diversity
from earlytom.ops.diversity import diverse_tokens, farthest_points, nearest_kept
from tests.kernels.helpers import DTYPES, FEW, both, randn


@FEW
@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 99), st.data())
def test_farthest_points_are_equal(
    device: torch.device, m: int, n: int, seed: int, data: st.DataObject
) -> None:
    n = max(n, m)
    count = data.draw(st.integers(m, n))
    x = randn(n, 5, dtype=torch.float32, device=device, seed=seed)
    unit = F.normalize(x.round(), dim=-1)  # rounding makes many ties
    start = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:m].to(device)
    found, expected = both(lambda: farthest_points(unit, count, start))
    assert found.tolist() == expected.tolist()
    assert len(set(found.tolist())) == count


def test_order_of_choice_and_ties(device: torch.device) -> None:
    from earlytom.kernels import farthest

    table = torch.full((5, 5), 0.5, device=device).fill_diagonal_(torch.inf)
    table[2, 4] = table[4, 2] = -1.0
    nearest = table[2].clone()
    start = torch.tensor([2], device=device)
    assert farthest.farthest_points(table, nearest, start, 5).tolist() == [2, 4, 0, 1, 3]
    assert farthest.farthest_points(table, nearest, start, 1).tolist() == [2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_tokens_are_not_chosen_twice(device: torch.device, dtype: torch.dtype) -> None:
    for x in (torch.ones(2, 5, 3), torch.zeros(2, 5, 3)):
        x = x.to(device, dtype)
        found, expected = both(lambda x=x: diverse_tokens(x, 7))
        assert found.tolist() == expected.tolist()
        assert len(set(found.tolist())) == 7


def test_large_tables_run_in_torch(device: torch.device, monkeypatch: Any) -> None:
    unit = F.normalize(randn(9, 4, dtype=torch.float32, device=device), dim=-1)
    start = torch.zeros(1, dtype=torch.int64, device=device)
    expected = farthest_points(unit, 5, start)
    monkeypatch.setattr(diversity.kernels, "MAX_POINTS", 8)
    with kernels._forced():
        assert torch.equal(farthest_points(unit, 5, start, max_bytes=0), expected)
        assert torch.equal(farthest_points(unit, 5, start), expected)


def check_nearest(others: Tensor, kept: Tensor, found: Tensor, expected: Tensor) -> None:
    cosine = F.normalize(others.float(), dim=-1) @ F.normalize(kept.float(), dim=-1).mT
    best = cosine.gather(1, expected[:, None])
    assert bool((cosine.gather(1, found[:, None]) >= best - 1e-6).all())
    assert float((found == expected).float().mean()) > 0.99


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "k", "dim"), [(70, 67, 130), (1, 1, 1), (5, 3, 20)])
def test_nearest(device: torch.device, dtype: torch.dtype, m: int, k: int, dim: int) -> None:
    others = randn(dim, 2 * m, dtype=dtype, device=device).t()[::2]  # not contiguous
    kept = randn(k, dim, dtype=dtype, device=device, seed=1)
    kept[-1] = kept[0]  # a tie: the lowest index
    others[0] = kept[0]
    from earlytom.kernels import nearest

    found = nearest.nearest_kept(others, kept)
    with kernels.disabled():
        check_nearest(others, kept, found, nearest_kept(others, kept))
    assert found[0] == 0


def test_nearest_dispatch(device: torch.device) -> None:
    """Half precision runs in the kernel, float32 does not."""
    x = randn(20, 8, dtype=torch.float16, device=device)
    found, expected = both(lambda: nearest_kept(x, x[:4]))
    check_nearest(x, x[:4], found, expected)
    with pytest.raises(AssertionError, match="no kernel"):
        both(lambda: nearest_kept(x.float(), x[:4].float()))


def test_rows_of_zeros_go_to_the_first(device: torch.device) -> None:
    others = torch.zeros(3, 4, device=device).half()
    kept = torch.ones(2, 4, device=device).half()
    found, expected = both(lambda: nearest_kept(others, kept))
    assert found.tolist() == expected.tolist() == [0, 0, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("n", [6272, 8192])
def test_real_size(n: int) -> None:
    cuda = torch.device("cuda")
    assert n <= MAX_POINTS
    unit = F.normalize(randn(n, 512, dtype=torch.float32, device=cuda), dim=-1)
    start = torch.arange(196, device=cuda)
    found, expected = both(lambda: farthest_points(unit, 650, start))
    assert torch.equal(found, expected)
    x = randn(n, 3584, dtype=torch.bfloat16, device=cuda)
    found, expected = both(lambda: nearest_kept(x, x[:650]))
    check_nearest(x, x[:650], found, expected)
