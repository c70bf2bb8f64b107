import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from earlytom.errors import ConfigError, VideoError
from earlytom.method import Method
from earlytom.methods import PruMerge
from earlytom.ops.neighbours import by_score, grid_places, merge_neighbours, outlier_share
from tests.methods.merging import (
    RATIOS,
    check_bad_input,
    check_method,
    check_vectors,
    clip,
    selected,
    video,
)

OFFICIAL = PruMerge(policy="official", retention_ratio=0.25)


def test_vectors() -> None:
    check_vectors("prumerge_0*.npz", 3)
    check_vectors("prumerge_plus_*.npz", 3)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("ratio", RATIOS)
def test_exact_counts_order_determinism(ratio: float, plus: bool) -> None:
    check_method(PruMerge(retention_ratio=ratio, plus=plus), exact=True)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("adaptive", [False, True])
def test_official_order_and_determinism(plus: bool, adaptive: bool) -> None:
    method = dataclasses.replace(OFFICIAL, plus=plus, adaptive=adaptive)
    check_method(method, exact=False)


def test_official_counts() -> None:
    assert selected(OFFICIAL, clip(6, 20)).index.numel() == 6 * (5 + 1)
    x = clip(4, 25)
    score = video(x).received
    assert score is not None
    share = outlier_share(score.numpy())
    found = selected(dataclasses.replace(OFFICIAL, adaptive=True), x)
    assert found.index.numel() == 4 * (int(25 * share) + 1)


# ---------------------------------------------------------------------- merging
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("max_bytes", [1, 1 << 26])
@pytest.mark.parametrize("near", [3, 32])
def test_neighbours_one_token_at_a_time(mean: bool, max_bytes: int, near: int) -> None:
    x = clip(3, 10, 6)
    v = video(x)
    assert v.received is not None
    assert v.keys is not None
    kept = [[4, 1, 7], [], [2]]
    values, extra = merge_neighbours(x, v.keys, v.received, kept, near, mean, max_bytes)
    rows = iter(values)
    for t, places in enumerate(kept):
        a = v.received[t]
        for i in places:
            similar = torch.cosine_similarity(v.keys[t], v.keys[t, i : i + 1], dim=-1)
            similar[i] = -2
            j = similar.argsort(descending=True)[: min(near, 9)]
            if mean:
                want = (a[i] * x[t, i] + a[j] @ x[t, j]) / (a[i] + a[j].sum())
            else:
                want = x[t, i] + a[j] @ x[t, j]
            torch.testing.assert_close(next(rows), want)
        rest = [p for p in range(10) if p not in places]
        want = a[rest] @ x[t, rest]
        torch.testing.assert_close(extra[t], want / a[rest].sum() if mean else want)
    assert next(rows, None) is None


def test_identical_tokens_stay_what_they_are() -> None:
    x = torch.ones(5, 16, 8) * 3
    found = selected(PruMerge(retention_ratio=0.25), x)
    torch.testing.assert_close(found.features, torch.full((20, 8), 3.0))


def test_one_token_per_frame_is_the_weighted_mean() -> None:
    x = clip(4, 16)
    found = selected(PruMerge(retention_ratio=1 / 16), x)
    received = video(x).received
    assert received is not None
    assert found.index.tolist() == (received.argmax(1) + torch.arange(4) * 16).tolist()
    want = torch.einsum("ns,nsd->nd", received / received.sum(1, keepdim=True), x)
    torch.testing.assert_close(found.features, want)
    assert found.weight is not None
    assert found.weight.tolist() == [16.0] * 4


def test_frames_share_the_budget() -> None:
    index = selected(PruMerge(retention_ratio=0.3), clip(7, 9)).index
    counts = torch.bincount(index // 9, minlength=7)
    assert int(counts.max() - counts.min()) <= 1
    few = selected(PruMerge(retention_ratio=0.03), clip(7, 9)).index  # fewer tokens than frames
    assert few.numel() == 2


def test_plus_spreads_three_quarters_over_the_frame() -> None:
    method = PruMerge(retention_ratio=0.5, plus=True)
    order = by_score(np.linspace(1, 0, 100)[None])
    (kept,) = method.exact_places(order, (21,))
    assert kept[:5] == [0, 1, 2, 3, 4]
    assert len(set(kept)) == 20
    assert set(np.diff(kept[5:])) <= {6, 7}


# ---------------------------------------------------------------------- counts
@given(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=60))
def test_outliers(values: list[float]) -> None:
    assert 0 <= outlier_share(np.array([values])) <= 0.25
    assert outlier_share(np.ones((2, 8))) == 0


def test_outliers_count() -> None:
    assert outlier_share(np.array([[1, 2, 3, 4, 5, 6, 7, 100]])) == 1 / 8


def test_grid() -> None:
    assert grid_places(np.array([0, 6]), 1 / 8, 9).tolist() == [2, 4, 8]
    assert grid_places(np.array([]), 0.9, 3).tolist() == [0, 1, 2]  # a step of 0 becomes 1


def test_everything_is_kept_at_ratio_one() -> None:
    for policy in ("exact", "official"):
        assert PruMerge(policy=policy, retention_ratio=1.0).select_tokens(video(clip())) is None


def test_bad_videos() -> None:
    check_bad_input(PruMerge())
    check_bad_input(OFFICIAL)
    v = video(clip())
    assert v.keys is not None
    v.keys[0, 0, 0] = float("nan")
    with pytest.raises(VideoError, match="NaN or infinite"):
        PruMerge().select_tokens(v)


@pytest.mark.parametrize("missing", ["received", "keys"])
def test_signals_are_needed(missing: str) -> None:
    with pytest.raises(ConfigError, match="received attention and keys"):
        PruMerge().select_tokens(dataclasses.replace(video(clip()), **{missing: None}))


@pytest.mark.parametrize(
    "wrong",
    [{"policy": "paper"}, {"plus": 1}, {"adaptive": True}, {"neighbours": 0}],
)
def test_bad_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PruMerge(**wrong)


def test_json() -> None:
    method = PruMerge(policy="official", plus=True, adaptive=True)
    assert Method.from_json(method.to_json()) == method


def test_merged_neighbours_keep_their_share_of_the_frame() -> None:
    """The published 32 of 576; 32 of 49 would average nearly the whole frame."""
    x = clip(2, 49)
    found, same, other = (
        selected(PruMerge(retention_ratio=0.25, neighbours=k), x).features for k in (None, 3, 32)
    )
    assert found is not None
    assert same is not None
    assert other is not None
    assert torch.equal(found, same)
    assert not torch.allclose(found, other)
