"""Merging inside the language model. Columns are equal; merged states differ by rounding only.

float32: 1e-6; float16 and bfloat16: one unit in the last place. Copies are bit-equal.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from earlytom.ops.inner import inner_merge
from tests.kernels.helpers import DTYPES, FEW, both, kernel_runs, randn, same_bits

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 7.9e-3}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["sequential", "mean"])
@pytest.mark.parametrize("count", [1, 5, 30])
def test_equals_torch(device: torch.device, dtype: torch.dtype, mode: str, count: int) -> None:
    hidden = randn(270, 45, dtype=dtype, device=device).t()
    row = randn(3, 45, dtype=torch.float32, device=device, seed=1).softmax(-1)
    place = torch.arange(7, 37, device=device)
    found, expected = both(lambda: inner_merge(hidden, row, place, count, mode))
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=TOLERANCE[dtype])
    text = (found[0] < 7) | (found[0] >= 37)
    assert same_bits(found[1][text], hidden[found[0][text]])


@FEW
@given(st.integers(1, 12), st.integers(0, 99), st.data())
def test_scattered_places(device: torch.device, n: int, seed: int, data: st.DataObject) -> None:
    hidden = randn(n, 6, dtype=torch.float32, device=device, seed=seed)
    row = randn(2, n, dtype=torch.float32, device=device, seed=seed + 1).abs()
    place = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    place = place[: data.draw(st.integers(1, n))].sort().values.to(device)
    count = data.draw(st.integers(1, place.numel()))
    found, expected = both(lambda: inner_merge(hidden, row, place, count))
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_real_size_and_determinism(dtype: torch.dtype) -> None:
    cuda = torch.device("cuda")
    hidden = randn(3300, 3584, dtype=dtype, device=cuda)
    row = randn(28, 3300, dtype=torch.float32, device=cuda, seed=1).softmax(-1)
    place = torch.arange(14, 3150, device=cuda)
    found, expected = both(lambda: inner_merge(hidden, row, place, 800))
    assert torch.equal(found[0], expected[0])
    # a source that is equally near to two kept tokens may go to the other one
    close = torch.isclose(found[1], expected[1], atol=1e-5, rtol=2 * TOLERANCE[dtype])
    assert float(close.all(1).float().mean()) > 0.99
    with kernel_runs():
        again = inner_merge(hidden, row, place, 800)
    assert same_bits(again[1], found[1])
