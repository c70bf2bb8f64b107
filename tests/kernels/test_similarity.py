"""Similarity of frames. Tolerance 2e-6 for all dtypes: both forms compute in float32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from earlytom.errors import VideoError
from earlytom.ops.similarity import band_similarity, measure_frames
from tests.kernels.helpers import DTYPES, FEW, both, randn


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [None, 0.3])
@pytest.mark.parametrize(
    ("frames", "patches", "dim", "width"), [(5, 19, 150, 2), (2, 1, 3, 1), (7, 9, 16, 6)]
)
def test_equals_torch(
    device: torch.device,
    dtype: torch.dtype,
    share: float | None,
    frames: int,
    patches: int,
    dim: int,
    width: int,
) -> None:
    x = randn(frames, patches, dim, dtype=dtype, device=device) + 0.5
    found, expected = both(lambda: band_similarity(x, width, share))
    assert found.shape == (width, frames)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


@FEW
@given(
    st.integers(2, 6), st.integers(1, 12), st.integers(1, 12), st.integers(1, 9), st.integers(0, 99)
)
def test_any_size(
    device: torch.device, frames: int, patches: int, dim: int, width: int, seed: int
) -> None:
    x = randn(patches, dim, frames, dtype=torch.float32, device=device, seed=seed)
    x = x.permute(2, 0, 1)  # not contiguous
    found, expected = both(lambda: band_similarity(x, width))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_zeros_large_values_and_bad_ones(device: torch.device) -> None:
    x = randn(4, 5, 64, dtype=torch.float16, device=device)
    x[1, 2] = 0
    x[2] = 6e4  # its square is no float16
    found, expected = both(lambda: band_similarity(x, 3))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    x[3, 1, 1] = torch.inf
    with pytest.raises(VideoError, match="NaN or infinite"):
        both(lambda: measure_frames(x, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 8, 31])
def test_real_size(dtype: torch.dtype, width: int) -> None:
    x = randn(32, 729, 1152, dtype=dtype, device=torch.device("cuda"))
    for share in (None, 0.1):
        found, expected = both(lambda share=share: band_similarity(x, width, share))
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
