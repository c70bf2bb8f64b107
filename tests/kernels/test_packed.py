"""Attention of packed queries.

Tolerance of outputs of about 1: 2e-6 in float32; in half precision both forms round the shares to
the dtype before they mix values: 2e-3 in float16, 2e-2 in bfloat16.
"""

from __future__ import annotations

import pytest
import torch

from earlytom.ops.packed import packed_attention
from tests.kernels.helpers import DTYPES, both, randn
from tests.ops.fresh_plan import by_frame, plan

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("frames", "patches", "heads", "kv_heads", "dim"),
    [(4, 70, 2, 2, 72), (1, 1, 1, 1, 8), (3, 20, 6, 2, 5), (5, 66, 1, 1, 40)],
)
def test_equals_torch(
    device: torch.device,
    dtype: torch.dtype,
    frames: int,
    patches: int,
    heads: int,
    kv_heads: int,
    dim: int,
) -> None:
    source, starts = plan(frames, patches, device)
    rows = int(starts[-1])
    # projections as the model makes them: heads are a transposed view
    query = randn(1, rows, heads, dim, dtype=dtype, device=device).transpose(1, 2)
    key = randn(1, rows, kv_heads, dim, dtype=dtype, device=device, seed=1).transpose(1, 2)
    value = randn(1, rows, kv_heads, dim, dtype=dtype, device=device, seed=2).transpose(1, 2)
    args = (query, key, value, source, starts, dim**-0.5)
    found, expected = both(lambda: packed_attention(*args))
    assert found.dtype == expected.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found.double(), by_frame(*args), atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_real_size(dtype: torch.dtype) -> None:
    """32 frames of a SigLIP encoder."""
    cuda = torch.device("cuda")
    source, starts = plan(32, 729, cuda)
    rows = int(starts[-1])
    qkv = randn(3, 1, rows, 16, 72, dtype=dtype, device=cuda).transpose(2, 3)
    found, expected = both(lambda: packed_attention(*qkv, source, starts, 72**-0.5))
    torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
