"""What EarlyTom does at its stages, driven as the engine drives it."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from earlytom.errors import BudgetError, ConfigError, VideoError
from earlytom.methods import EarlyTom
from earlytom.ops.budget import encoder_share
from earlytom.ops.plan import MergePlan
from earlytom.stages import TokenSelection, VideoFeatures, VideoState
from tests.inner_states import inner_state
from tests.ops.helpers import assert_stochastic, video

LAYERS = 12


def run(
    method: EarlyTom, x: Tensor, received: Tensor | None = None
) -> tuple[Tensor, VideoState, TokenSelection | None]:
    """Stage I between identity layers and stage II without pooling."""
    state = VideoState.start(x.shape[0], LAYERS)
    score = method.score_layer(LAYERS)
    points = method.merge_points(LAYERS)
    for layer in range(LAYERS):
        if layer == score:
            state.received = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(3))
        if layer in points:
            point = points.index(layer)
            plan = method.merge_frames(x, state, point, x.shape[1])
            if plan is not None:
                x = plan.apply(x)
                state.apply(plan, layer)
            method.finish_frames(x, state, point)
    chosen = method.select_tokens(VideoFeatures(x, state.received, (1, x.shape[1]), state))
    return x, state, chosen


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(1, 100).map(lambda i: i / 100),
    st.sampled_from(["diversity", "uniform", "global", "topk", "window", "decoupled"]),
    st.sampled_from(["first", "average"]),
    st.booleans(),
    st.integers(0, 99),
)
def test_budget_counts_are_exact(
    n: int, size: int, ratio: float, selection: str, fuse: str, rest: bool, seed: int
) -> None:
    m = EarlyTom(retention_ratio=ratio, selection=selection, fuse=fuse, merge_rest=rest)
    x, state, chosen = run(m, video(n, size, 5, seed=seed))
    # ceil(r T S) in integers
    expected = max(1, -(-round(ratio * 100) * n * size // 100))
    index = torch.arange(x.shape[0] * size) if chosen is None else chosen.index
    assert index.numel() == expected
    assert index.tolist() == sorted(set(index.tolist()))
    assert 0 <= int(index[0]) <= int(index[-1]) < x.shape[0] * size
    assert x.shape[0] == m.frame_counts(n, size, LAYERS)[-1] >= -(-expected // size)
    assert sum(state.count) == n
    for plan in state.plans:
        assert_stochastic(plan)
    if rest and chosen is not None:
        assert chosen.features is not None
        assert chosen.features.shape == (expected, 5)
        assert float(chosen.weight.sum()) == x.shape[0] * size


@pytest.mark.parametrize("fuse", ["first", "average"])
def test_exact_frames(fuse: str) -> None:
    x = video(16)
    m = EarlyTom(retention_ratio=0.1, frames=(10, 3), fuse=fuse, selection="none")
    out, state, chosen = run(m, x)
    assert chosen is None
    assert [p.n_output for p in state.plans] == [10, 3]
    assert state.layers == [1, 4]
    plan = state.plans[0].then(state.plans[1])
    for row, members in enumerate(plan.members):
        first, mean = x[members[0]], x[list(members)].mean(0)
        # averaging is weighted by what every frame stands for, over all merge points
        assert torch.allclose(out[row], first if fuse == "first" else mean, atol=1e-5)
    if fuse == "first":
        assert torch.equal(out, x[list(state.first)])


@pytest.mark.parametrize(("similarity", "survives"), [("worst", True), ("mean", False)])
def test_brief_events_survive_the_worst_share_but_not_the_mean(
    similarity: str, survives: bool
) -> None:
    x = video(1, patches=100).repeat(12, 1, 1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * 0.3
    noise[4:7] = 0  # frames 4 to 6 are the most alike on average ...
    x += noise
    x[5, 40] *= -1  # ... but for a flash in one patch of frame 5
    m = EarlyTom(retention_ratio=0.1, frames=(8, 8), frame_similarity=similarity, worst_share=0.01)
    _, state, _ = run(m, x)
    assert ((5,) in state.plans[0].members) == survives


def test_averaging_weighs_a_frame_by_what_it_stands_for() -> None:
    state = VideoState(4, (0, 3), (3, 1), n_layers=LAYERS)
    m = EarlyTom(retention_ratio=0.1, frames=(2, 1), fuse="average")
    plan = m.merge_frames(video(2), state, 1, 6)
    assert plan is not None
    assert plan.weights == ((0.75, 0.25),)


def test_encoder_budget_with_own_layers() -> None:
    m = EarlyTom(retention_ratio=0.1, encoder_budget=0.7, merge_layers=(3, 6, 9))
    _, state, _ = run(m, video(32))
    frames = [p.n_output for p in state.plans]
    assert state.layers == [3, 6, 9]
    assert 0.65 < encoder_share(32, LAYERS, state.layers, frames) <= 0.7
    # an engine that does not say how deep the encoder is
    with pytest.raises(ConfigError, match="number of encoder layers"):
        m.merge_frames(video(32), VideoState.start(32), 0, 6)


def test_budget_without_similar_frames_or_with_identical_ones() -> None:
    for x in (torch.randn(8, 6, 16), torch.ones(8, 6, 16), torch.zeros(8, 6, 16)):
        out, state, chosen = run(EarlyTom(retention_ratio=0.1), x)
        assert chosen is not None
        assert chosen.index.numel() == 5
        assert out.shape[0] == 3
        assert sum(state.count) == 8


@pytest.mark.parametrize("policy", ["budget", "official", "paper"])
def test_keep_everything_without_merge_points_is_the_identity(policy: str) -> None:
    m = EarlyTom(policy=policy, retention_ratio=1.0, merge_layers=())
    assert m.merge_points(LAYERS) == ()
    _, state, chosen = run(m, video(7))
    assert chosen is None
    assert state.plans == []


def test_budget_at_ratio_one_never_merges() -> None:
    _, state, chosen = run(EarlyTom(retention_ratio=1.0), video(7))
    assert chosen is None
    assert state.plans == []


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("policy", ["budget", "official", "paper"])
def test_bad_features_are_named_at_both_stages(policy: str, bad: float) -> None:
    x = video(8)
    x[3, 2, 1] = bad
    with pytest.raises(VideoError, match="NaN or infinite"):
        run(EarlyTom(policy=policy), x)
    with pytest.raises(VideoError, match="NaN or infinite"):
        run(EarlyTom(policy=policy, merge_layers=()), x)


def test_impossible_frames_are_refused_at_the_first_merge_point() -> None:
    with pytest.raises(BudgetError, match="the video has 5"):
        run(EarlyTom(frames=(6, 3), retention_ratio=0.1), video(5))


def test_missing_attention_is_named() -> None:
    state = VideoState.start(4)
    features = VideoFeatures(video(4), None, (1, 6), state)
    with pytest.raises(ConfigError, match="diversity, uniform, none"):
        EarlyTom(selection="topk").select_tokens(features)


# ---------------------------------------------------------------------- paper by hand
def frames_at(*angles: float) -> Tensor:
    """One patch per frame, a unit vector at an angle in degrees."""
    a = torch.deg2rad(torch.tensor(angles))
    return torch.stack([a.cos(), a.sin()], dim=-1)[:, None]


def test_paper_stage_one_by_hand() -> None:
    # neighbours: cos 10, cos 2, cos 20, cos 90 -> cut (ema 1), cos 5
    x = frames_at(0, 10, 12, 32, 122, 127)
    m = EarlyTom(policy="paper", tau=0.5, ema=1.0, merge_layers=(0,))
    plan = m.merge_frames(x, VideoState.start(6), 0, 1)
    assert plan is not None
    assert plan.groups == ((0, 3), (4, 5))
    assert plan.members == ((0,), (1, 2), (3,), (4,), (5,))
    s1, s2 = torch.deg2rad(torch.tensor([2.0, 20.0])).cos().tolist()
    assert plan.weights[1] == pytest.approx((s1 / (s1 + s2), s2 / (s1 + s2)), abs=1e-6)
    strict = EarlyTom(policy="paper", tau=0.5, ema=1.0, merge_layers=(0,), tau_merge=0.9999)
    kept = strict.merge_frames(x, VideoState.start(6), 0, 1)
    assert kept is not None
    assert kept.is_identity
    mean = EarlyTom(policy="paper", tau=0.5, ema=1.0, merge_layers=(0,), fuse="average")
    averaged = mean.merge_frames(x, VideoState.start(6), 0, 1)
    assert averaged is not None
    assert averaged.weights[1] == (0.5, 0.5)


def features_of(n_input: int, received: Tensor, groups: Any) -> VideoFeatures:
    n, size = received.shape
    state = VideoState(n_input, tuple(range(n)), (1,) * n, groups=groups)
    return VideoFeatures(torch.randn(n, size, 4), received, (1, size), state)


def test_paper_stage_two_by_hand() -> None:
    # 4 of 8 frames left, r = 0.25 -> rate 0.5 -> 3 of 6 tokens per frame
    score = torch.tensor([0.1, 0.5, 0.4, 0.3, 0.2, 0.0]).repeat(4, 1)
    m = EarlyTom(policy="paper", retention_ratio=0.25)
    chosen = m.select_tokens(features_of(8, score, ((0, 3),)))
    assert chosen is not None
    top, windows = [1, 2, 3], [1, 2, 4]  # windows {0,1} {2,3} {4,5}
    expected = [i + 6 * f for f in range(4) for i in (windows if f in (1, 2) else top)]
    assert chosen.index.tolist() == expected


def test_official_and_paper_count_differently() -> None:
    score = torch.rand(8, 100)
    video_features = features_of(24, score, ((0, 2), (3, 7)))
    official = EarlyTom(policy="official", retention_ratio=0.1).select_tokens(video_features)
    paper = EarlyTom(policy="paper", retention_ratio=0.1).select_tokens(video_features)
    assert official is not None
    assert paper is not None
    # 100 * (0.1 / (8 / 24)) is 30.000000000000004 in binary: the release keeps 31 in 4 frames
    assert official.index.numel() == 4 * 31 + 4 * 30
    assert paper.index.numel() == 8 * 30
    # banker's rounding of 2.5 windows in static frames
    half = features_of(4, torch.rand(4, 5), ((0, 3),))
    chosen = EarlyTom(policy="official", retention_ratio=0.5).select_tokens(half)
    assert chosen is not None
    assert chosen.index.numel() == 2 * 3 + 2 * 2


def test_official_groups_are_found_again_after_the_last_merge_point() -> None:
    x = video(30, drift=0.05)
    m = EarlyTom(policy="official", retention_ratio=0.2)
    out, state, _ = run(m, x)
    assert len(state.plans) == 3
    assert out.shape[0] < 30
    assert [i for a, b in state.groups for i in range(a, b + 1)] == list(range(out.shape[0]))


@pytest.mark.parametrize("policy", ["official", "paper"])
def test_one_frame(policy: str) -> None:
    x = video(1, patches=9)
    out, state, chosen = run(EarlyTom(policy=policy, retention_ratio=0.3), x)
    assert torch.equal(out, x)
    assert chosen is not None
    assert chosen.index.numel() == 3
    assert state.groups == ((0, 0),)


# ---------------------------------------------------------------------- stage III
@pytest.mark.parametrize("policy", ["official", "paper", "budget"])
def test_inner(policy: str) -> None:
    hidden, rows = torch.randn(20, 6), torch.rand(2, 20)
    visual = torch.zeros(20, dtype=torch.bool)
    visual[[3, 4, 5, 9, 10, 11, 12, 13]] = True
    m = EarlyTom(policy=policy, inner_merge_layer=2, inner_ratio=0.25)
    merge = m.merge_inner(inner_state(hidden, visual, rows))
    assert merge is not None
    assert merge.hidden is not None
    assert merge.index.numel() == 12 + 2
    text = ~visual[merge.index]
    assert torch.equal(merge.hidden[text], hidden[~visual])
    assert not torch.equal(merge.hidden[~text], hidden[merge.index][~text])
    assert m.merge_inner(inner_state(hidden, torch.zeros_like(visual), rows)) is None
    assert EarlyTom(inner_ratio=1.0).merge_inner(inner_state(hidden, visual, rows)) is None


def test_inner_keeps_at_least_one() -> None:
    visual = torch.zeros(5, dtype=torch.bool)
    visual[2:4] = True
    state = inner_state(torch.randn(5, 3), visual, torch.rand(1, 5))
    merge = EarlyTom(inner_ratio=0.1).merge_inner(state)
    assert merge is not None
    assert merge.index.numel() == 4


# ---------------------------------------------------------------------- cost
def test_one_host_copy_per_merge_point(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    real = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda t: copies.append(t.shape) or real(t))
    for name in ("item", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, lambda t, *a: pytest.fail("host copy"))
    for policy in ("budget", "official", "paper"):
        copies.clear()
        EarlyTom(policy=policy).merge_frames(video(24), VideoState.start(24), 0, 6)
        assert len(copies) == 1
        assert copies[0].numel() <= 24 * 9  # scalars only


def test_plans_do_not_depend_on_patch_order_or_scale() -> None:
    x = video(20, seed=4)
    y = x[:, torch.randperm(6)] * 4.0
    for policy in ("budget", "official", "paper"):
        m = EarlyTom(policy=policy)
        a = m.merge_frames(x, VideoState.start(20), 0, 6)
        b = m.merge_frames(y, VideoState.start(20), 0, 6)
        assert isinstance(a, MergePlan)
        assert isinstance(b, MergePlan)
        assert a.members == b.members
