from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from earlytom.ops.tensors import unit_rows
from earlytom.ops.whitening import RANK, whitened


def tokens(n: int, size: int, dim: int, seed: int = 0) -> Tensor:
    """Random features whose directions differ much in length, around a large mean."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, size, dim, generator=g) * torch.logspace(0, 1, dim) + 5


def products(x: Tensor) -> Tensor:
    flat = x.flatten(0, 1)
    return flat @ flat.mT


def cosines(x: Tensor) -> Tensor:
    return products(unit_rows(x))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 5),
    size=st.integers(1, 9),
    dim=st.integers(1, 8),
    ridge=st.sampled_from([1e-4, 1e-2, 1.0]),
    seed=st.integers(0, 99),
    max_bytes=st.sampled_from([0, 1 << 20]),
)
def test_products_are_mahalanobis(
    n: int, size: int, dim: int, ridge: float, seed: int, max_bytes: int
) -> None:
    x = tokens(n, size, dim, seed)
    rows = (x.double() - x.double().mean((0, 1))).flatten(0, 1)
    covariance = rows.mT @ rows / len(rows)
    relative = covariance / covariance.trace().clamp_min(1e-30) + ridge * torch.eye(dim)
    expected = rows @ torch.linalg.solve(relative, rows.mT)
    got = products(whitened(x, ridge, max_bytes=max_bytes))
    scale = float(expected.abs().max()) + 1e-6
    torch.testing.assert_close(got / scale, expected.float() / scale, rtol=0, atol=1e-3)


def test_without_a_ridge_to_speak_of_linear_maps_change_nothing() -> None:
    x = tokens(4, 30, 6)
    mixed = x @ torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        cosines(whitened(mixed, 1e-9)), cosines(whitened(x, 1e-9)), rtol=0, atol=2e-3
    )


def test_small_differences_count_as_much_as_large_ones() -> None:
    """Two kinds of difference, one a hundred times smaller: whitened, both are as far apart."""
    x = torch.zeros(1, 4, 2)
    x[0, :, 0] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    x[0, :, 1] = torch.tensor([0.01, -0.01, 0.01, -0.01])
    assert float(cosines(x)[0, 1]) > 0.99
    assert abs(float(cosines(whitened(x, 1e-7))[0, 1])) < 0.01


def test_a_large_ridge_leaves_features_as_they_are() -> None:
    x = tokens(3, 5, 4)
    expected = cosines(x - x.mean((0, 1)))
    torch.testing.assert_close(cosines(whitened(x, 1e4)), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_tokens_stay_equal(dtype: torch.dtype) -> None:
    for value in (0.0, 0.1, 7.0):
        got = whitened(torch.full((2, 3, 5), value, dtype=dtype), 1e-3)
        assert torch.isfinite(got).all()
        assert torch.equal(got, got[:1, :1].expand_as(got))


def test_few_random_directions_suffice_for_few_kinds_of_difference() -> None:
    """Wide features of low rank: nearly the products of all dimensions."""
    g = torch.Generator().manual_seed(0)
    scale = 0.7 ** torch.arange(12.0)
    x = (torch.randn(6, 40, 12, generator=g) * scale) @ torch.randn(12, 300, generator=g)
    full, some = cosines(whitened(x, 1e-3, rank=300)), cosines(whitened(x, 1e-3, rank=64))
    assert whitened(x, 1e-3).shape == (6, 40, RANK)
    assert float((full - some).abs().mean()) < 0.05
    assert float(torch.corrcoef(torch.stack([full.flatten(), some.flatten()]))[0, 1]) > 0.97


def test_is_the_same_every_time_and_leaves_the_generator_alone() -> None:
    x = tokens(2, 5, RANK + 7)
    state = torch.get_rng_state()
    first = whitened(x, 1e-3)
    assert torch.equal(first, whitened(x.clone(), 1e-3))
    assert torch.equal(state, torch.get_rng_state())


def test_autocast_and_gradients_do_not_matter() -> None:
    x = tokens(2, 6, 4)
    expected = whitened(x, 1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(whitened(x.clone().requires_grad_(), 1e-3), expected)
    assert not whitened(x.requires_grad_(), 1e-3).requires_grad
