"""Afterimage's decisions: what is computed, what is kept, how much it counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlytom.errors import VideoError
from earlytom.method import Method
from earlytom.methods import Afterimage
from earlytom.methods.afterimage import with_time
from earlytom.ops.fresh import changed_patches
from earlytom.ops.lattice import video_lattice
from earlytom.ops.whitening import whitened
from earlytom.stages import TokenSelection, VideoFeatures, VideoState


def features(n: int = 8, grid: tuple[int, int] = (3, 4), seed: int = 0) -> VideoFeatures:
    g = torch.Generator().manual_seed(seed)
    return VideoFeatures(
        torch.randn(n, grid[0] * grid[1], 6, generator=g), None, grid, VideoState.start(n)
    )


def chosen(method: Afterimage, video: VideoFeatures) -> TokenSelection:
    found = method.select_tokens(video)
    assert found is not None
    return found


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 12),
    ratio=st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5, 0.99]),
    even=st.sampled_from([0.0, 0.35, 1.0]),
    seed=st.integers(0, 5),
)
def test_exact_counts_and_weights(n: int, ratio: float, even: float, seed: int) -> None:
    video = features(n, seed=seed)
    method = Afterimage(retention_ratio=ratio, even_share=even, weight_power=1.0)
    found = method.select_tokens(video)
    wanted = method.token_budget(n, 12)
    if found is None:
        assert wanted >= n * 12
        return
    assert found.index.numel() == wanted
    assert (found.index.diff() > 0).all()
    assert found.weight is not None
    assert float(found.weight.sum()) == n * 12, "every token of the video counts once"


def test_weights_follow_the_power() -> None:
    video = features()
    whole = chosen(Afterimage(weight_power=1.0), video)
    root = chosen(Afterimage(weight_power=0.5), video)
    assert torch.equal(whole.index, root.index)
    torch.testing.assert_close(whole.weight, root.weight**2)
    assert chosen(Afterimage(weight_power=0), video).weight is None
    assert not Afterimage(weight_power=0).weighs_tokens


def test_only_even_tokens_are_the_lattice() -> None:
    video = features()
    method = Afterimage(retention_ratio=0.25, even_share=1.0)
    assert tuple(chosen(method, video).index.tolist()) == video_lattice(8, (3, 4), 24)


def test_a_single_odd_token_is_found() -> None:
    video = features()
    video.features[:] = video.features[:1, :1]
    video.features[5, 7] *= -1
    index = chosen(Afterimage(retention_ratio=0.05), video).index
    assert 5 * 12 + 7 in index.tolist()


def test_time_keeps_equal_tokens_apart() -> None:
    """Of identical frames the tokens kept are spread over time if time counts."""
    video = features(12)
    video.features[:] = video.features[:1]
    far = chosen(Afterimage(retention_ratio=0.1, even_share=0, time_weight=5.0), video).index
    frames = torch.div(far, 12, rounding_mode="floor").unique()
    assert len(frames) >= 8
    assert int(frames.min()) <= 1
    assert int(frames.max()) >= 10


def test_similarity_mixes_likeness_and_time() -> None:
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    got = with_time(x, 2.0)
    gram = got @ got.T
    torch.testing.assert_close(gram.diag(), torch.ones(12))
    centred = (x - x.mean((0, 1))).flatten(0, 1)
    cosine = torch.nn.functional.cosine_similarity(centred[1], centred[8], dim=0)
    expected = (cosine + 4 * math.cos(math.pi / 2 * 2 / 4)) / 5
    torch.testing.assert_close(gram[1, 8], expected)


def test_whitening_finds_what_differs_little() -> None:
    """Strong noise in some directions, two faint classes in another; one class is rare."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 12, 6, generator=g) * torch.tensor([9.0, 9.0, 9.0, 9.0, 9.0, 0.0])
    x[..., 5] = 0.02 * torch.randn(6, 12, generator=g)
    rare = [5, 30, 50]
    x.flatten(0, 1)[rare, 5] = 1.5
    video = VideoFeatures(x, None, (3, 4), VideoState.start(6))
    method = Afterimage(retention_ratio=0.1, even_share=0, time_weight=0)

    def found(method: Afterimage) -> int:
        return len(set(rare) & set(chosen(method, video).index.tolist()))

    assert found(method) > found(replace(method, ridge=None))


def test_similarity_of_whitened_features() -> None:
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    white = whitened(x, 1e-2).flatten(0, 1)
    got = with_time(x, 2.0, 1e-2)
    cosine = torch.nn.functional.cosine_similarity(white[1], white[8], dim=0)
    expected = (cosine + 4 * math.cos(math.pi / 2 * 2 / 4)) / 5
    torch.testing.assert_close((got @ got.T)[1, 8], expected)


def test_blending_averages_what_is_alike_and_nothing_else() -> None:
    """Three scenes of noisy copies: tokens come nearer to their own scene, not to the others."""
    g = torch.Generator().manual_seed(0)
    scenes = torch.randn(3, 6, generator=g) * 5
    clean = scenes.repeat_interleave(4, 0)[None].expand(3, -1, -1)
    x = clean + torch.randn(3, 12, 6, generator=g) * 0.3
    video = VideoFeatures(x, None, (3, 4), VideoState.start(3))

    def error(blend: float) -> float:
        found = chosen(Afterimage(retention_ratio=0.2, blend=blend, time_weight=0.5), video)
        kept = x.flatten(0, 1)[found.index] if found.features is None else found.features
        return float((kept - clean.flatten(0, 1)[found.index]).square().mean())

    assert error(1.0) < error(0.5) < error(0.0)


@settings(max_examples=40, deadline=None)
@given(
    value=st.sampled_from([0.0, 0.1, 7.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    ridge=st.sampled_from([None, 3e-4]),
    time=st.sampled_from([0.0, 1.5]),
)
def test_equal_tokens_stay_what_they_are(
    value: float, dtype: torch.dtype, ridge: float | None, time: float
) -> None:
    """Features of no length, too: every token is at least like itself."""
    x = torch.full((4, 12, 6), value, dtype=dtype)
    video = VideoFeatures(x, None, (3, 4), VideoState.start(4))
    found = chosen(Afterimage(retention_ratio=0.2, ridge=ridge, time_weight=time), video)
    assert found.features is not None
    assert found.features.dtype == dtype
    torch.testing.assert_close(found.features, x.flatten(0, 1)[: len(found.index)])


def test_without_blending_tokens_are_copied() -> None:
    assert chosen(Afterimage(blend=0), features()).features is None


@pytest.mark.parametrize(("n_layers", "layer"), [(26, 2), (12, 1), (4, 1), (27, 2), (48, 4)])
def test_the_layer_scales_with_the_depth(n_layers: int, layer: int) -> None:
    assert Afterimage().reuse_layer(n_layers) == layer
    assert Afterimage(encoder_budget=1).reuse_layer(n_layers) is None


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 40),
    budget=st.sampled_from([0.2, 0.35, 0.5, 0.75, 0.99]),
    depth=st.sampled_from([12, 26, 27]),
)
def test_encoder_budget_is_never_exceeded(n: int, budget: float, depth: int) -> None:
    method = Afterimage(encoder_budget=budget)
    layer = method.reuse_layer(depth)
    assert layer is not None
    fresh = method.fresh_count(n, 729, depth)
    spent = (layer * n * 729 + (depth - layer) * fresh) / (depth * n * 729)
    assert spent <= budget or fresh == 729, "unless the first frame alone costs more"
    hidden = torch.randn(n, 7, 4, generator=torch.Generator().manual_seed(n))
    marked = method.fresh_patches(hidden, depth)
    assert int(marked.sum()) == method.fresh_count(n, 7, depth)
    assert marked[0].all()


def test_what_changes_is_computed() -> None:
    hidden = torch.randn(1, 10, 6, generator=torch.Generator().manual_seed(0)).repeat(5, 1, 1)
    hidden[2:, 4] += 3.0  # patch 4 changes once, in frame 2
    hidden[3, 8] -= 3.0  # patch 8 flashes in frame 3
    marked = changed_patches(hidden, 10 + 3)
    marked[0] = False
    assert marked.nonzero().tolist() == [[2, 4], [3, 8], [4, 8]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_features_are_refused(bad: float) -> None:
    video = features()
    video.features[3, 2, 1] = bad
    with pytest.raises(VideoError, match="NaN or infinite"):
        Afterimage().select_tokens(video)


def test_json_round_trip() -> None:
    method = Afterimage(retention_ratio=0.1, encoder_budget=0.4, layer=2, time_weight=0)
    assert Method.from_json(method.to_json()) == method
    assert method.exact_budget
    assert method.resolved_positions() == "keep"
