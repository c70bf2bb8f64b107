"""Received attention. Tolerance 2e-6 for all dtypes: both forms compute in float32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from earlytom import kernels
from earlytom.ops.received import received_attention
from tests.kernels.helpers import DTYPES, FEW, both, randn


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "n_query", "n_key", "dim"),
    [(2, 2, 2, 65, 65, 72), (1, 1, 1, 1, 1, 8), (1, 6, 2, 5, 130, 16), (3, 2, 1, 70, 3, 5)],
)
def test_equals_torch(
    device: torch.device,
    dtype: torch.dtype,
    batch: int,
    heads: int,
    kv_heads: int,
    n_query: int,
    n_key: int,
    dim: int,
) -> None:
    q = randn(batch, heads, n_query, dim, dtype=dtype, device=device)
    k = randn(batch, kv_heads, n_key, dim, dtype=dtype, device=device, seed=1)
    found, expected = both(lambda: received_attention(q, k, dim**-0.5))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_projections_as_the_model_has_them(device: torch.device, dtype: torch.dtype) -> None:
    """Heads are a transposed view; keys are every second row of a larger tensor."""
    q = randn(2, 9, 3, 12, dtype=dtype, device=device).transpose(1, 2)
    k = randn(2, 22, 3, 12, dtype=dtype, device=device).transpose(1, 2)[:, :, ::2]
    found, expected = both(lambda: received_attention(q, k, 0.3))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@FEW
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70), st.floats(0.01, 20))
def test_rows_sum_to_one(
    device: torch.device, batch: int, n_query: int, n_key: int, scale: float
) -> None:
    q = randn(batch, 1, n_query, 4, dtype=torch.float32, device=device, seed=n_key)
    k = randn(batch, 1, n_key, 4, dtype=torch.float32, device=device, seed=n_query)
    found, expected = both(lambda: received_attention(q, k, scale))
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=1e-4)


def test_not_finite_queries_are_not_hidden(device: torch.device) -> None:
    q = randn(2, 2, 5, 8, dtype=torch.float32, device=device)
    q[1, 0, 2, 3] = torch.nan
    found, expected = both(lambda: received_attention(q, q, 0.3))
    assert torch.equal(found.isnan(), expected.isnan())
    assert bool(found[1].isnan().all())


def test_masks_and_wide_heads_run_in_torch(device: torch.device) -> None:
    q = randn(1, 2, 5, 300, dtype=torch.float32, device=device)
    mask = torch.rand(5, 5, device=device)
    with kernels.disabled():
        wide, masked = received_attention(q, q, 0.1), received_attention(q, q, 0.1, mask)
    with kernels._forced():
        assert torch.equal(received_attention(q, q, 0.1), wide)
        assert torch.equal(received_attention(q, q, 0.1, mask), masked)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_real_size(dtype: torch.dtype) -> None:
    """32 frames of a SigLIP encoder."""
    q = randn(32, 729, 16, 72, dtype=dtype, device=torch.device("cuda")).transpose(1, 2)
    found, expected = both(lambda: received_attention(q, q, 72**-0.5))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4)
