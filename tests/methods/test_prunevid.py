import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from earlytom.errors import ConfigError
from earlytom.method import Method
from earlytom.methods import PruneVid
from earlytom.methods.prunevid import token_groups
from earlytom.ops.cluster import contiguous_labels, label_groups
from tests.inner_runs import frames_of, prompt, rows_of, run_inside
from tests.inner_states import inner_state, span
from tests.methods.merging import (
    RATIOS,
    check,
    check_bad_input,
    check_method,
    check_vectors,
    clip,
    selected,
    video,
)

OFFICIAL = PruneVid(policy="official", retention_ratio=0.5)


def test_vectors() -> None:
    check_vectors("prunevid_0*.npz", 5)


@pytest.mark.parametrize("ratio", RATIOS)
def test_exact_counts_order_determinism(ratio: float) -> None:
    check_method(PruneVid(retention_ratio=ratio), exact=True)


def test_official_order_and_determinism() -> None:
    check_method(OFFICIAL, exact=False)
    check_method(PruneVid(policy="official", cluster_ratio=0.01), exact=False)


# ---------------------------------------------------------------------- contiguity repair
@pytest.mark.parametrize(
    ("labels", "repaired"),
    [
        ([1, 1, 2, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0, 0]),
        ([0, 1, 2, 3], [0, 0, 0, 0]),  # nothing but single frames
        ([0, 0, 0, 1, 2, 2], [0, 0, 0, 0, 2, 2]),
        ([0, 0, 1, 2, 2, 2], [0, 0, 2, 2, 2, 2]),
        ([0, 0, 1, 2, 2], [0, 0, 0, 2, 2]),  # equally long: left
        ([3, 0, 0, 0, 3, 3, 1, 1], [0, 0, 0, 0, 3, 3, 1, 1]),
        ([0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0]),  # equally long runs both stay
        ([5], [0]),
    ],
)
def test_contiguous_labels(labels: list[int], repaired: list[int]) -> None:
    assert contiguous_labels(labels) == repaired


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_segments_partition_the_video(labels: list[int]) -> None:
    repaired = contiguous_labels(labels)
    assert len(repaired) == len(labels)
    assert len(labels) == 1 or len(repaired) < 2 or min(repaired) >= 0
    groups = label_groups(repaired)
    assert [i for a, b in groups for i in range(a, b + 1)] == list(range(len(labels)))
    assert all(b > a for a, b in groups) or len(labels) == 1


# ---------------------------------------------------------------------- segments and groups
def test_static_places_are_those_alike_in_all_pairs() -> None:
    x = clip(9, 16, still=0.5)
    method = PruneVid(tau=0.8)
    windows = method.find_windows(x, [0, 0, 0, 0, 1, 2, 2, 2, 2])
    assert windows.groups == ((0, 3), (4, 4), (5, 8))
    assert not windows.static[1].any()
    for w, (a, b) in enumerate(windows.groups):
        if a == b:
            continue
        part = x[a : b + 1]
        pairs = [(i, j) for i in range(b - a + 1) for j in range(b - a + 1) if i != j]
        mean = sum(torch.cosine_similarity(part[i], part[j], dim=-1) for i, j in pairs)
        assert windows.static[w].tolist() == (mean / len(pairs) > 0.8).tolist()


def test_groups_cover_every_token_once() -> None:
    x = clip(7, 9)
    windows = PruneVid().find_windows(x, [0, 0, 0, 1, 1, 1, 1])
    place, rows, weight, sizes = token_groups(x, windows)
    assert place.unique().numel() == place.numel() == len(rows) == sum(sizes)
    assert float(weight.sum()) == 63
    assert len(rows) == 63 - windows.removed
    alone = weight == 1
    assert torch.equal(rows[alone], x.flatten(0, 1)[place[alone]])


def test_clusters_are_means_of_everything() -> None:
    x = clip(12, 25)
    found = selected(PruneVid(retention_ratio=0.4), x)
    check(found, x)
    assert found.weight is not None
    assert found.features is not None
    assert float(found.weight.sum()) == 300  # no group is without a cluster: the mean is kept
    mean = (found.features * found.weight[:, None]).sum(0) / 300
    torch.testing.assert_close(mean, x.flatten(0, 1).mean(0), atol=1e-4, rtol=1e-4)


def test_everything_is_kept_at_ratio_one() -> None:
    for policy in ("exact", "official"):
        assert PruneVid(policy=policy, retention_ratio=1.0).select_tokens(video(clip())) is None


def test_identical_frames_keep_each_place_once() -> None:
    x = clip(1, 16).repeat(8, 1, 1)
    found = selected(PruneVid(retention_ratio=0.125), x)
    assert found.index.tolist() == list(range(16))
    torch.testing.assert_close(found.features, x[0])


def test_official_leaves_small_groups_alone() -> None:
    moving = PruneVid(policy="official", retention_ratio=0.5, tau=1.0)
    assert selected(moving, clip(8, 14, still=0.0)).index.numel() == 8 * 14
    assert selected(moving, clip(8, 15, still=0.0)).index.numel() == 8 * 7


# ---------------------------------------------------------------------- stage 2
@pytest.mark.parametrize("policy", ["exact", "official"])
@pytest.mark.parametrize("newline", [False, True])
def test_stage_two_keeps_what_the_question_looks_at_in_every_frame(
    policy: str, newline: bool
) -> None:
    hidden, patch = prompt(5, 16, newline=newline)
    run = run_inside(PruneVid(policy=policy, inner_prune_layer=3), hidden, patch, n_layers=6)
    kept = 6 if policy == "official" else 6.4  # of 16 in every frame
    assert run.seen == [80] * 3 + [int(5 * kept)] * 3
    assert torch.equal(run.hidden, hidden[run.column])
    questions = torch.arange(len(patch) - 5, len(patch))
    score = rows_of(hidden, questions).amax((0, 1))
    for frame in range(5):
        inside = (frames_of(patch) == frame).nonzero().flatten()
        left = [c for c in inside.tolist() if c in run.column.tolist()]
        assert len(left) in (6, 7)
        best = inside[score[inside].argsort(descending=True)[: len(left)]]
        assert left == sorted(best.tolist())


def test_stage_two_is_off_by_default_and_with_nothing_to_prune() -> None:
    assert PruneVid().inner_points(28) == ()
    assert PruneVid(inner_prune_layer=3, inner_ratio=1.0).inner_points(28) == ()


def test_stage_two_without_a_question_asks_the_last_column() -> None:
    state = inner_state(torch.randn(12, 4), span(12, 2, 10), torch.rand(2, 12))
    method = PruneVid(inner_prune_layer=3, inner_ratio=0.05)
    assert method.inner_queries(state) is None
    done = method.merge_inner(state)
    assert done is not None
    assert done.index.numel() == 3  # at least one visual token


def test_bad_videos() -> None:
    check_bad_input(PruneVid())
    check_bad_input(OFFICIAL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "paper"},
        {"tau": 2.0},
        {"cluster_ratio": 0.5},
        {"cluster_ratio": 0.0, "policy": "official"},
        {"temporal_segment_ratio": 0.0},
        {"neighbours": 0},
        {"inner_ratio": 0.0},
        {"inner_prune_layer": 0},
    ],
)
def test_bad_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PruneVid(**wrong)


def test_json() -> None:
    method = PruneVid(policy="official", cluster_ratio=0.4)
    assert Method.from_json(method.to_json()) == method
