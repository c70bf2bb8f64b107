"""Rows that are gathered and rows that are blank: bit-equal for all dtypes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from earlytom.ops.rows import gather_masked, place_rows
from tests.kernels.helpers import DTYPES, FEW, both, randn, same_bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fill", [0.0, float("nan"), -2.5])
def test_gather(device: torch.device, dtype: torch.dtype, fill: float) -> None:
    x = randn(2, 9, 1030, dtype=dtype, device=device)
    x[0, 3, 5], x[1, 2] = -0.0, torch.nan
    index = torch.tensor([[3, 0, 0, 8], [2, 2, 7, 1]], device=device)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 1, 1]], device=device).bool()
    found, expected = both(lambda: gather_masked(x, index, mask, fill))
    assert same_bits(found, expected)
    assert bool(found[0, 0, 5].signbit())


@FEW
@given(
    st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.integers(0, 9)
)
def test_gather_from_views(
    device: torch.device, batch: int, length: int, count: int, dim: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = randn(length, 2 * dim, batch, dtype=torch.float16, device=device).permute(2, 0, 1)[..., ::2]
    index = torch.randint(length, (count, batch), generator=g).to(device).t()
    mask = torch.rand(batch, 2 * count, generator=g).to(device)[:, ::2] < 0.6
    found, expected = both(lambda: gather_masked(x, index, mask))
    assert same_bits(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chosen", [[4, 0, 7], [2], None])
def test_place(device: torch.device, dtype: torch.dtype, chosen: list[int] | None) -> None:
    x = randn(150, 8, dtype=dtype, device=device).t()
    index = None if chosen is None else torch.tensor(chosen, device=device)
    n = 8 if chosen is None else len(chosen)
    target = torch.tensor([11, 3, 5, 0, 1, 2, 8, 7][:n], device=device)
    found, expected = both(lambda: place_rows(x, target, 12, index))
    assert same_bits(found, expected)
    written = x if index is None else x[index]
    assert same_bits(found[target], written)
    assert int(found.isnan().all(1).sum()) == 12 - n


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_real_size(dtype: torch.dtype) -> None:
    """A prompt of 6500 columns; 32 frames of 729 tokens, of which a tenth is chosen."""
    cuda = torch.device("cuda")
    x = randn(2, 6500, 3584, dtype=dtype, device=cuda)
    index = torch.randint(6500, (2, 700), device=cuda)
    mask = torch.rand(2, 700, device=cuda) < 0.9
    assert same_bits(*both(lambda: gather_masked(x, index, mask)))
    tokens = randn(32 * 729, 1152, dtype=dtype, device=cuda)
    place = torch.randperm(32 * 729, device=cuda)[:2333]
    assert same_bits(*both(lambda: place_rows(tokens, place, 32 * 729, place.flip(0))))
    frames = tokens.view(32, -1)
    assert same_bits(*both(lambda: place_rows(frames[:9], place[:9].argsort(), 32)))
