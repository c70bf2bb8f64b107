import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlytom.errors import VideoError
from earlytom.ops.similarity import band_similarity, measure_frames
from tests.ops.helpers import LargestTensor, cosine, video


@given(st.integers(1, 9), st.integers(0, 12), st.integers(1, 4000), st.integers(0, 99))
def test_band_equals_pairwise_cosine(n: int, width: int, max_bytes: int, seed: int) -> None:
    x = video(n, seed=seed)
    band = measure_frames(x, width, max_bytes=max_bytes)
    assert band.width == min(width, n - 1)
    for i in range(n):
        for j in range(i + 1, min(n, i + band.width + 1)):
            assert band(i, j) == pytest.approx(cosine(x[i], x[j]), abs=1e-5)


@given(st.floats(0.01, 1.0), st.integers(0, 99))
def test_worst_share_is_the_mean_of_the_least_similar_patches(share: float, seed: int) -> None:
    x = video(3, patches=20, seed=seed)
    k = max(1, math.ceil(round(share * 20, 9)))
    cos = torch.cosine_similarity(x[0], x[1], dim=-1).sort().values[:k].mean()
    assert measure_frames(x, 1, share)(0, 1) == pytest.approx(float(cos), abs=1e-5)


def test_one_changed_patch_drowns_in_the_mean_but_not_in_the_worst_share() -> None:
    x = torch.randn(1, 100, 8).repeat(2, 1, 1)
    x[1, 7] *= -1
    assert measure_frames(x, 1)(0, 1) == pytest.approx(0.98, abs=1e-5)
    assert measure_frames(x, 1, worst_share=0.01)(0, 1) == pytest.approx(-1.0, abs=1e-5)


@given(st.integers(0, 99), st.floats(0.001, 1000))
def test_patch_order_and_positive_scale_do_not_matter(seed: int, scale: float) -> None:
    x = video(5, seed=seed)
    shuffled = x[:, torch.randperm(x.shape[1])] * scale
    for share in (None, 0.3):
        assert torch.allclose(
            band_similarity(x, 3, share), band_similarity(shuffled, 3, share), atol=1e-5
        )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("share", [None, 0.3])
def test_bad_features_are_named(bad: float, n: int, share: float | None) -> None:
    x = video(n)
    x[n - 1, 2, 3] = bad
    with pytest.raises(VideoError, match="NaN or infinite"):
        measure_frames(x, 1, share)


def test_zero_features_and_half_precision() -> None:
    assert measure_frames(torch.zeros(2, 3, 4), 1)(0, 1) == 0.0
    x = video(4).bfloat16()
    assert measure_frames(x, 1)(0, 1) == pytest.approx(cosine(x[0], x[1]), abs=1e-5)
    # large half-precision values must not overflow
    for share in (None, 0.5):
        large = torch.full((2, 3, 64), 6e4).half()
        assert measure_frames(large, 1, share)(0, 1) == pytest.approx(1.0)


@settings(deadline=None)
@given(st.integers(2, 40))
def test_memory_is_bounded(n: int) -> None:
    x = torch.randn(n, 16, 32)
    with LargestTensor() as meter:
        band_similarity(x, 2, max_bytes=4 * 16 * 32 * 4)
    assert meter.bytes <= max((4 + 2) * 16 * 32 * 4, 3 * n * 4)


def test_autocast_does_not_change_similarities() -> None:
    x = video(6)
    expected = band_similarity(x, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(band_similarity(x, 3), expected)
