import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlytom.errors import ConfigError, VideoError
from earlytom.method import Method
from earlytom.methods import HoliTom
from earlytom.ops.cluster import density_peaks
from earlytom.ops.windows import merge_runs, share_out, static_windows
from earlytom.stages import VideoFeatures, VideoState
from tests import parity
from tests.inner_states import inner_state, span
from tests.methods.merging import (
    DATA,
    RATIOS,
    check,
    check_bad_input,
    check_method,
    check_vectors,
    clip,
    selected,
    video,
)

OFFICIAL = HoliTom(policy="official", retention_ratio=0.3)


# ---------------------------------------------------------------------- golden vectors
def test_vectors() -> None:
    check_vectors("holitom_0*.npz", 8)


@pytest.mark.parametrize("path", sorted(DATA.glob("holitom_inner_*.npz")), ids=lambda p: p.stem)
def test_inner_vectors(path: Path) -> None:
    v = parity.Vector(path)
    visual = span(v["hidden"].shape[1], v["visual_start"], v["visual_len"])
    method = HoliTom(policy="official", inner_merge_layer=2, inner_ratio=1 - v["merge_ratio"])
    merge = method.merge_inner(inner_state(v["hidden"][0], visual, v["attn_last_row"]))
    assert merge is not None
    assert torch.equal(merge.index, v.expected["out_kept_index"])
    torch.testing.assert_close(merge.hidden, v.expected["out_hidden"][0], atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------- dynamic programme
def gain(still: np.ndarray, first: int, last: int) -> int:
    return int(still[first:last].all(0).sum()) * (last - first) if last > first else 0


def best_by_brute_force(still: np.ndarray, max_window: int) -> int:
    n = len(still) + 1
    best = 0
    for cuts in itertools.product([False, True], repeat=n - 1):
        starts = [0, *[i + 1 for i, cut in enumerate(cuts) if cut]]
        groups = list(zip(starts, [*[s - 1 for s in starts[1:]], n - 1], strict=True))
        if all(b - a < max_window for a, b in groups):
            best = max(best, sum(gain(still, a, b) for a, b in groups))
    return best


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(0, 6),
    size=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    share=st.floats(0.3, 1.0),
    max_window=st.integers(1, 8),
)
def test_windows_are_optimal(
    steps: int, size: int, seed: int, share: float, max_window: int
) -> None:
    still = np.random.default_rng(seed).random((steps, size)) < share
    windows = static_windows(still, max_window)
    assert [i for a, b in windows.groups for i in range(a, b + 1)] == list(range(steps + 1))
    assert max(windows.lengths) <= max_window
    assert windows.removed == best_by_brute_force(still, max_window)
    assert windows.removed == sum(gain(still, a, b) for a, b in windows.groups)
    assert windows.joined().sum() == windows.removed


# ---------------------------------------------------------------------- clustering
def naive_clusters(x: torch.Tensor, count: int, k: int) -> tuple[list[int], list[int]]:
    """Centres in score order and the owner of every row, one row at a time."""
    n = len(x)
    d = [[float((a - b).double().norm()) / x.shape[1] ** 0.5 for b in x] for a in x]
    density = [np.exp(-np.mean(np.square(sorted(row)[:k]))) for row in d]
    top = max(map(max, d))
    apart = [
        min([d[i][j] for j in range(n) if density[j] > density[i]], default=top) for i in range(n)
    ]
    score = [a * b for a, b in zip(apart, density, strict=True)]
    centres = sorted(range(n), key=lambda i: -score[i])[:count]
    owner = [
        centres.index(i) if i in centres else int(np.argmin([d[i][c] for c in centres]))
        for i in range(n)
    ]
    return centres, owner


@pytest.mark.parametrize("max_bytes", [1, 1 << 26])
def test_groups_are_clustered_like_each_alone(max_bytes: int) -> None:
    g = torch.Generator().manual_seed(0)
    sizes, counts, near = [9, 0, 5, 14, 3, 4], [4, 0, None, 7, 0, 1], [7, 7, 7, 3, 7, 7]
    rows = torch.randn(sum(sizes), 6, generator=g) + 5
    clusters = density_peaks(rows, sizes, counts, near, max_bytes)
    total = sum(s if c is None else c for s, c in zip(sizes, counts, strict=True))
    centres, owners, start = [], [], 0
    for size, count, k in zip(sizes, counts, near, strict=True):
        x, first = rows[start : start + size], len(centres)
        if count == 0:
            owners += [total] * size  # in no cluster
        else:
            alone = (
                (list(range(size)), list(range(size)))
                if count is None
                else naive_clusters(x, count, min(k, size))
            )
            centres += [start + c for c in alone[0]]
            owners += [first + o for o in alone[1]]
        start += size
    assert clusters.centre.tolist() == centres
    assert clusters.owner.tolist() == owners
    means, members = clusters.means(rows)
    for c in range(len(centres)):
        mine = clusters.owner == c
        torch.testing.assert_close(means[c], rows[mine].mean(0))
        assert int(members[c]) == int(mine.sum())
    ordered = clusters.in_row_order()
    assert torch.equal(ordered.centre, clusters.centre.sort().values)
    has = ordered.owner < total
    assert torch.equal(ordered.centre[ordered.owner[has]], clusters.centre[clusters.owner[has]])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.floats(0, 1))
def test_shares_add_up_and_fit(sizes: list[int], part: float) -> None:
    total = int(sum(sizes) * part)
    shares = share_out(total, sizes)
    assert sum(shares) == total
    assert all(0 <= a <= b for a, b in zip(shares, sizes, strict=True))


# ---------------------------------------------------------------------- the method
@pytest.mark.parametrize("ratio", RATIOS)
def test_exact_counts_order_determinism(ratio: float) -> None:
    check_method(HoliTom(retention_ratio=ratio), exact=True)


def test_official_order_and_determinism() -> None:
    check_method(OFFICIAL, exact=False)
    x = clip(32, 49)
    n = selected(OFFICIAL, x).index.numel()
    assert abs(n - OFFICIAL.token_budget(32, 49)) <= 32


def test_everything_is_kept_at_ratio_one() -> None:
    for policy in ("exact", "official"):
        assert HoliTom(policy=policy, retention_ratio=1.0).select_tokens(video(clip())) is None


def test_identical_frames_keep_each_place_once() -> None:
    """Enough budget for every place once: nothing is lost, whatever the ratio adds is split."""
    x = clip(1, 16).repeat(8, 1, 1)
    found = selected(HoliTom(retention_ratio=0.125), x)
    assert found.index.tolist() == list(range(16))
    torch.testing.assert_close(found.features, x[0])
    assert found.weight is not None
    assert found.weight.tolist() == [8.0] * 16


def test_windows_are_split_where_tokens_differ_most() -> None:
    x = clip(1, 4, still=1.0).repeat(6, 1, 1)
    x[3:, 2] += 0.05  # the only step that is not perfectly still
    similarity = torch.cosine_similarity(x[:-1], x[1:], dim=-1)
    joined = np.ones((6, 4), dtype=bool)
    joined[0] = False
    index, values, weight = merge_runs(x, joined, similarity, 5)
    assert index.tolist() == [0, 1, 2, 3, 3 * 4 + 2]
    assert weight.tolist() == [6.0, 6.0, 3.0, 6.0, 3.0]
    torch.testing.assert_close(values[[2, 4]], torch.stack([x[0, 2], x[3, 2]]))


def test_tokens_of_a_budget_above_the_static_merge_are_convex() -> None:
    x = clip(10, 25, still=0.9)
    method = HoliTom(retention_ratio=0.9)
    found = selected(method, x)
    check(found, x)
    assert found.weight is not None
    assert float(found.weight.sum()) == 250  # every token is in exactly one mean


def test_official_keeps_too_few_where_exact_keeps_its_budget() -> None:
    x = clip(8, 16, still=1.0)
    official = selected(HoliTom(policy="official", retention_ratio=0.5), x)
    exact = selected(HoliTom(retention_ratio=0.5), x)
    assert official.index.numel() < 64 == exact.index.numel()


def test_copied_tokens_are_bit_equal() -> None:
    x = clip(12, 16, still=0.4)
    found = selected(HoliTom(retention_ratio=0.4), x)
    assert found.features is not None
    assert found.weight is not None
    same = (found.features == x.flatten(0, 1)[found.index]).all(1)
    assert int(same.sum()) > 10
    assert bool(same[found.weight == 1].any())


def test_tau_follows_the_published_table() -> None:
    x = clip()
    for ratio, tau in [(0.1, 0.65), (0.15, 0.8)]:
        named, auto = HoliTom(retention_ratio=ratio, tau=tau), HoliTom(retention_ratio=ratio)
        assert named.find_windows(x)[0].groups == auto.find_windows(x)[0].groups


def test_bad_videos() -> None:
    check_bad_input(HoliTom())
    check_bad_input(OFFICIAL)
    nothing = HoliTom(policy="official", retention_ratio=1e-9, tau=-1.0)
    with pytest.raises(VideoError, match="leaves no token"):
        selected(nothing, torch.ones(4, 4, 8))


def test_received_attention_is_needed() -> None:
    x = clip()
    with pytest.raises(ConfigError, match="received attention"):
        HoliTom().select_tokens(VideoFeatures(x, None, (4, 4), VideoState.start(12)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "budget"},
        {"tau": 1.5},
        {"beta": -0.1},
        {"neighbours": 0},
        {"max_window": True},
        {"inner_merge_layer": 0},
        {"inner_ratio": 0.0},
    ],
)
def test_bad_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        HoliTom(**wrong)


def test_json() -> None:
    method = HoliTom(beta=None, tau=0.7, inner_merge_layer=18)
    assert Method.from_json(method.to_json()) == method
