"""Drive a method through a small mock encoder, as the engine does, and check what all must do."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from earlytom.errors import VideoError
from earlytom.method import Method, load_method
from earlytom.stages import PatchState
from tests.ops.helpers import video


@dataclass
class Run:
    """Hidden states and the state behind the encoder; tokens left after every reduction."""

    hidden: Tensor
    state: PatchState
    left: list[int] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)


def wanted_of(method: Method, patches: int) -> int:
    return math.ceil(round(method.retention_ratio * patches, 6))


def encode(
    method: Method,
    x: Tensor,
    grid: tuple[int, int],
    n_layers: int = 6,
    wanted: int | None = None,
    heads: int = 2,
) -> Run:
    """Layers are a fixed residual; queries and keys are random projections of their input."""
    frames, n, dim = x.shape
    assert n == grid[0] * grid[1]
    wanted = wanted_of(method, n) if wanted is None else wanted
    state = PatchState.start(frames, grid, n_layers, wanted)
    run, points = Run(x, state), method.reduce_layers(n_layers)
    g = torch.Generator().manual_seed(3)
    for layer in range(n_layers):
        wq, wk = torch.randn(2, heads, dim, 4, generator=g)
        if layer in points:
            state.layer, state.point = layer, points.index(layer)
            wide = run.hidden[:, None].float()
            if "query" in method.patch_signals():
                state.query = (wide @ wq).to(x.dtype)
            if "key" in method.patch_signals():
                state.key = (wide @ wk).to(x.dtype)
            before = run.hidden.shape[1]
            done = method.reduce_patches(run.hidden, state)
            if done is not None:
                assert done.hidden.shape[1] < before, "None says that nothing happens"
                assert done.hidden.dtype == x.dtype
                assert done.target.shape == (frames, before)
                assert done.target.dtype == torch.int64
                assert all(set(range(done.hidden.shape[1])) <= set(t.tolist()) for t in done.target)
                state.apply(done)
                run.hidden = done.hidden
                run.targets.append(done.target)
            run.left.append(run.hidden.shape[1])
        run.hidden = run.hidden + 0.1 * run.hidden.roll(1, dims=2)
    return run


def check_encoder_method(method: Method, drops: bool = False) -> None:
    """Counts, sizes, identity, determinism, separate frames, half precision, NaN, JSON.

    Args:
        method: any method that reduces patches.
        drops: whether it may drop patches (their sizes are lost).
    """
    assert method.exact_budget
    for frames, grid in ((5, (4, 6)), (1, (5, 5)), (3, (6, 4))):
        patches = grid[0] * grid[1]
        x = video(frames, patches, 8, seed=patches)
        run = encode(method, x, grid)
        assert run.left[-1] == wanted_of(method, patches) == run.hidden.shape[1]
        assert run.left == sorted(run.left, reverse=True)
        assert run.state.size.shape == (frames, run.left[-1])
        assert run.state.size.min() > 0
        assert run.hidden.isfinite().all()
        if not drops:
            torch.testing.assert_close(run.state.size.sum(1), torch.full((frames,), float(patches)))
            assert (run.state.owner >= 0).all()
        again = encode(method, x.clone(), grid)
        assert torch.equal(again.hidden, run.hidden)
        for t in range(frames):
            alone = encode(method, x[t : t + 1], grid)
            assert all(
                torch.equal(a[0], b[t]) for a, b in zip(alone.targets, run.targets, strict=True)
            )
            torch.testing.assert_close(alone.hidden[0], run.hidden[t])
    x = video(4, 24, 8)
    untouched = encode(dataclasses.replace(method, retention_ratio=1.0), x, (4, 6), wanted=6)
    assert untouched.left == []
    plenty = encode(method, x, (4, 6), wanted=24)
    assert plenty.targets == []
    for dtype in (torch.float16, torch.bfloat16):
        # the first reduction sees the same numbers in both, so it must decide alike
        half = video(4, 24, 8, seed=2).to(dtype)
        low, high = (encode(method, z, (4, 6)) for z in (half, half.float()))
        assert low.hidden.dtype == dtype
        assert low.left == high.left
    bad = video(4, 24, 8)
    bad[2, 3, 1] = torch.nan
    with pytest.raises(VideoError, match="NaN or infinite"):
        encode(method, bad, (4, 6))
    encode(method, torch.zeros(2, 24, 8), (4, 6))  # all ties
    data = method.to_dict()
    assert load_method(data.pop("method"), **data) == method
    assert Method.from_json(method.to_json()) == method


def first_target(method: Method, x: Tensor, grid: tuple[int, int], signals: Tensor) -> Tensor:
    """Decision of the first reduction with given float32 queries and keys cast to ``x``'s dtype."""
    state = PatchState.start(x.shape[0], grid, 6, wanted_of(method, x.shape[1]))
    state.layer, state.point = method.reduce_layers(6)[0], 0
    state.query, state.key = signals.to(x.dtype)
    done = method.reduce_patches(x, state)
    assert done is not None
    return done.target


def check_decisions_are_float32(method: Method) -> None:
    """Half precision inputs decide as the same numbers in float32."""
    g = torch.Generator().manual_seed(5)
    for dtype in (torch.float16, torch.bfloat16):
        x = video(3, 24, 8, seed=4).to(dtype)
        signals = torch.randn(2, 3, 2, 24, 4, generator=g).to(dtype).float()
        low = first_target(method, x, (4, 6), signals)
        assert torch.equal(low, first_target(method, x.float(), (4, 6), signals))
