"""Shared by the tests of the merging methods: synthetic videos and what all must guarantee."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from earlytom.errors import VideoError
from earlytom.method import Method
from earlytom.stages import TokenSelection, VideoFeatures, VideoState
from tests import parity

DATA = Path(__file__).parent.parent / "data"
SHAPES = [(1, 9), (2, 4), (5, 16), (8, 9), (9, 4), (13, 25)]
RATIOS = [0.05, 0.1, 0.25, 0.3, 0.55, 0.9, 0.99]
BROKEN = [float("nan"), float("inf"), -float("inf")]


def clip(n: int = 12, size: int = 16, dim: int = 8, seed: int = 0, still: float = 0.6) -> Tensor:
    """Two scenes; a share of the places hardly moves, the others drift."""
    g = torch.Generator().manual_seed(seed)
    scene = torch.randn(2, size, dim, generator=g)
    speed = torch.where(torch.rand(size, 1, generator=g) < still, 0.02, 0.8)
    noise = torch.randn(n, size, dim, generator=g) * speed
    return torch.stack([scene[int(t > n // 2)] + noise[t] for t in range(n)])


def video(x: Tensor, seed: int = 1) -> VideoFeatures:
    n, size = x.shape[:2]
    g = torch.Generator().manual_seed(seed)
    received = torch.rand(n, size, generator=g) / size
    keys = x[..., :4] + 0.1 * torch.randn(n, size, min(4, x.shape[2]), generator=g)
    return VideoFeatures(x, received, (1, size), VideoState.start(n), keys)


def selected(method: Method, x: Tensor) -> TokenSelection:
    found = method.select_tokens(video(x))
    assert found is not None
    return found


def check(selection: TokenSelection, x: Tensor) -> None:
    """Order, shapes and values that every selection must have."""
    n, size, dim = x.shape
    index = selection.index
    assert index.dtype == torch.int64
    assert bool((index.diff() > 0).all())
    assert int(index[0]) >= 0
    assert int(index[-1]) < n * size
    if selection.features is not None:
        assert selection.features.shape == (index.numel(), dim)
        assert selection.features.dtype == x.dtype
        assert bool(selection.features.isfinite().all())
    if selection.weight is not None:
        assert selection.weight.shape == index.shape
        assert selection.weight.dtype == torch.float32
        assert float(selection.weight.min()) >= 1
        assert float(selection.weight.sum()) <= n * size + 1e-3


def check_method(method: Method, exact: bool, shapes: list[tuple[int, int]] = SHAPES) -> None:
    """Counts, order and determinism on moving, still and half-precision videos."""
    for n, size in shapes:
        videos = [clip(n, size), clip(1, size).repeat(n, 1, 1), clip(n, size, still=0.0)]
        for x in [*videos, videos[0].bfloat16(), torch.ones(n, size, 8)]:
            found = method.select_tokens(video(x))
            wanted = method.token_budget(n, size)
            if found is None:
                assert not exact or wanted == n * size or method.retention_ratio == 1
                continue
            check(found, x)
            if exact:
                assert found.index.numel() == wanted
            again = selected(method, x)
            assert torch.equal(found.index, again.index)
            if found.features is not None and again.features is not None:
                assert torch.equal(found.features, again.features)


def check_bad_input(method: Method) -> None:
    for value in BROKEN:
        x = clip()
        x[3, 2, 1] = value
        with pytest.raises(VideoError, match="NaN or infinite"):
            method.select_tokens(video(x))


def check_vectors(pattern: str, count: int) -> None:
    paths = sorted(DATA.glob(pattern))
    assert len(paths) == count
    for path in paths:
        assert parity.check_file(path)["problems"] == [], path.name
