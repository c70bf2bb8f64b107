"""Drive stage II of a method as the engine does, and check what every method must keep to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from earlytom.errors import VideoError
from earlytom.method import Method, load_method
from earlytom.stages import TokenSelection, VideoFeatures, VideoState
from tests import parity
from tests.ops.helpers import video

DATA = Path(__file__).parent.parent / "data"
FEW = {"deadline": None, "max_examples": 60}


def check_found_by_arrays(name: str, files: int, folder: Path) -> None:
    """The copies of vectors are there, and parity knows them under any file name."""
    assert len(list(DATA.glob(f"{name}_[0-9]*.npz"))) == files
    renamed = folder / "hidden.npz"
    renamed.write_bytes((DATA / f"{name}_00.npz").read_bytes())
    assert parity.check_file(renamed)["kind"] == name
    assert parity.check_file(renamed)["problems"] == []


def choose(
    method: Method,
    x: Tensor,
    grid: tuple[int, int] | None = None,
    received: Tensor | None = None,
    keys: Tensor | None = None,
) -> TokenSelection | None:
    """Stage II on features ``[T, S, D]``; signals that the method asks for default to noise."""
    n, size = x.shape[:2]
    g = torch.Generator().manual_seed(n * size)
    if method.score_layer(12) is not None and received is None:
        received = torch.rand(n, size, generator=g)
    if method.needs_keys() and keys is None:
        keys = torch.randn(n, size, 4, generator=g)
    state = VideoState.start(n, 12)
    return method.select_tokens(VideoFeatures(x, received, grid or (1, size), state, keys))


def index_of(chosen: TokenSelection | None, x: Tensor) -> Tensor:
    return torch.arange(x.shape[0] * x.shape[1]) if chosen is None else chosen.index


def budget(method: Method, x: Tensor) -> int:
    """``max(1, ceil(r T S))`` in integers, for ratios of at most five decimals."""
    share = round(method.retention_ratio * 10**5)
    return max(1, -(-share * x.shape[0] * x.shape[1] // 10**5))


def check_contract(method: Method, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """Check order, values, weights, determinism and the kind of budget; return the index."""
    chosen, again = choose(method, x, grid), choose(method, x.clone(), grid)
    index, total = index_of(chosen, x), x.shape[0] * x.shape[1]
    assert index.dtype == torch.int64
    assert index.numel() >= 1
    assert (index.diff() > 0).all()
    assert 0 <= int(index[0]) <= int(index[-1]) < total
    if chosen is None:
        assert again is None
    else:
        assert again is not None
        assert torch.equal(index, again.index)
        if chosen.features is not None:
            assert again.features is not None
            assert torch.equal(chosen.features, again.features)
            assert chosen.features.shape == (index.numel(), x.shape[2])
            assert chosen.features.dtype == x.dtype
        if chosen.weight is not None:
            assert chosen.weight.shape == index.shape
            assert chosen.weight.dtype == torch.float32
            assert chosen.weight.min() >= 1
    if method.exact_budget:
        assert index.numel() == budget(method, x)
    return index


def check_common(method: Method) -> None:
    """Identity at ratio 1, one frame, one token, identical frames, NaN, half precision, JSON."""
    whole = dataclasses.replace(method, retention_ratio=1.0)
    assert choose(whole, video(5)) is None
    for x in (video(1), video(7)[:1, :1], video(1).expand(6, -1, -1), torch.zeros(4, 6, 8)):
        check_contract(method, x)
    for bad in (torch.nan, torch.inf):
        x = video(5)
        x[2, 3, 1] = bad
        with pytest.raises(VideoError, match="NaN or infinite"):
            choose(method, x)
    for dtype in (torch.float16, torch.bfloat16):
        x = video(8).to(dtype)
        index = check_contract(method, x)
        assert torch.equal(index, check_contract(method, x.float())), "decisions are float32"
    data = method.to_dict()
    assert load_method(data.pop("method"), **data) == method
    assert Method.from_json(method.to_json()) == method
