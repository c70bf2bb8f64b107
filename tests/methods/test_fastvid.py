"""FastVID: golden vectors, counts, the signals it uses, and absorption against a loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from earlytom.errors import ConfigError
from earlytom.methods import FastVID
from earlytom.ops.anchors import absorb, cut_frames, probe_attention
from earlytom.stages import TokenSelection, VideoFeatures, VideoState
from tests import parity
from tests.methods.stage_two import (
    DATA,
    FEW,
    budget,
    check_common,
    check_contract,
    check_found_by_arrays,
    choose,
)
from tests.ops.helpers import video

VECTORS = sorted(DATA.glob("fastvid_*.npz"))


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_vector(path: Path) -> None:
    assert parity.check_file(path)["problems"] == []


@pytest.mark.parametrize("name", ["fastvid", "fastvid_head"])
def test_vectors_are_there_and_found_by_their_arrays(name: str, tmp_path: Path) -> None:
    check_found_by_arrays(name, 2, tmp_path)


@pytest.mark.parametrize("policy", ["exact", "official"])
def test_common(policy: str) -> None:
    check_common(FastVID(policy=policy, retention_ratio=0.4))


@settings(**FEW)
@given(
    st.integers(1, 14),
    st.integers(1, 12),
    st.integers(1, 100),
    st.sampled_from([0.0, 0.4, 1 / 3, 1.0]),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_counts(
    n: int, size: int, percent: int, share: float, step: int, segments: int, seed: int
) -> None:
    """Exact for every budget; the context of a segment is its share, whatever fits its frames."""
    x = video(n, size, 5, seed=seed)
    kw = {"context_share": share, "anchor_step": step, "segments": segments}
    m = FastVID(retention_ratio=percent / 100, **kw)
    check_contract(m, x)
    wanted = budget(m, x)
    if wanted < n * size:
        groups = cut_frames(np.linspace(0, 1, n - 1), segments, 0.5)
        salient, anchors = m.exact_counts(groups, size, wanted)
        assert n * salient + sum(c for _, c in anchors) == wanted
        assert max((c for _, c in anchors), default=0) <= size - salient
        assert [t for t, _ in anchors] == sorted({t for t, _ in anchors})
        assert {b for _, b in groups} <= {t for t, _ in anchors}, "last frames hold anchors"
    official = FastVID(policy="official", retention_ratio=percent / 100, **kw)
    index = check_contract(official, x)
    assert index.numel() <= max(n, budget(m, x))


@pytest.mark.parametrize(
    ("percent", "salient", "each"), [(25, 30, 76), (20, 24, 60), (15, 18, 44), (10, 12, 28)]
)
def test_published_split(percent: int, salient: int, each: int) -> None:
    """49, 39, 29, 19 tokens of 14 x 14 = 30+19, 24+15, 18+11, 12+7; 4 frames share one anchor."""
    m = FastVID(policy="official", retention_ratio=percent / 100)
    groups = tuple((a, a + 3) for a in range(0, 32, 4))
    assert m.official_counts(groups, 196, 32) == (salient, [(b, each) for _, b in groups])
    assert m.exact_counts(groups, 196, m.token_budget(32, 196))[0] == salient


def test_cut_frames() -> None:
    similar = np.array([0.9, 0.2, 0.95, 0.2, 0.99, 0.5])
    assert cut_frames(similar, 1, 0.0) == ((0, 6),)
    assert cut_frames(similar, 2, 0.0) == ((0, 1), (2, 6)), "the lowest index of equal ones"
    assert cut_frames(similar, 3, 0.0) == ((0, 1), (2, 3), (4, 6))
    assert cut_frames(similar, 1, 0.6) == ((0, 1), (2, 3), (4, 5), (6, 6))
    assert cut_frames(similar, 99, 0.0) == tuple((t, t) for t in range(7))
    assert cut_frames(np.zeros(0), 8, 0.9) == ((0, 0),)


def absorb_one(
    x: Tensor,
    taken: Tensor,
    groups: tuple[tuple[int, int], ...],
    frames: list[tuple[int, list[int]]],
    beta: float,
    itself: bool,
) -> list[tuple[Tensor, float]]:
    """Token by token."""
    anchors = {(t, s) for t, places in frames for s in places}
    out = []
    for t, places in frames:
        a, b = next(g for g in groups if g[0] <= t <= g[1])
        sharing = sum(bool(p) and a <= f <= b for f, p in frames)
        joined: dict[int, list[tuple[int, int]]] = {s: [] for s in places}
        for f in range(a, b + 1):
            for s in range(x.shape[1]):
                if taken[f, s] or not places or (not itself and f == t and s in places):
                    continue
                near = [float(torch.cosine_similarity(x[f, s], x[t, p], dim=0)) for p in places]
                joined[places[near.index(max(near))]].append((f, s))
        for s in places:
            members = joined[s]
            w = max(beta, 1 / (len(members) + 1))
            mean = torch.stack([x[m] for m in members]).mean(0) if members else x[t, s]
            alone = sum(m not in anchors for m in members)
            out.append((w * x[t, s] + (1 - w) * mean, 1 + alone / sharing))
    return out


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(2, 7), st.booleans(), st.data())
def test_absorbing_equals_a_loop(n: int, size: int, itself: bool, data: st.DataObject) -> None:
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    x = torch.randn(n, size, 5, generator=g)
    taken = torch.rand(n, size, generator=g) < 0.3
    cuts = [t for t in range(n - 1) if data.draw(st.booleans())]
    groups = tuple(zip([0, *(t + 1 for t in cuts)], [*cuts, n - 1], strict=True))
    frames = []
    for t in range(n):
        if data.draw(st.booleans()):
            free = (~taken[t]).nonzero().flatten().tolist()
            frames.append((t, free[: data.draw(st.integers(0, len(free)))]))
    places = torch.tensor([t * size + s for t, p in frames for s in p], dtype=torch.int64)
    beta = data.draw(st.sampled_from([0.0, 0.4, 0.6, 1.0]))
    counts = [(t, len(p)) for t, p in frames]
    expected = absorb_one(x, taken, groups, frames, beta, itself)
    for max_bytes in (1, 1 << 26):
        out = absorb(x, taken, groups, counts, places, beta, itself, max_bytes)
        assert out.values.shape == (len(expected), 5)
        for k, (value, weight) in enumerate(expected):
            torch.testing.assert_close(out.values[k], value, atol=1e-5, rtol=1e-5)
            assert float(out.weight[k]) == pytest.approx(weight, abs=1e-5)


def test_every_token_is_counted_once() -> None:
    """Salient tokens, anchors, and every other token once over the anchors of its segment."""
    x = video(20, 24, 8)
    chosen = choose(FastVID(retention_ratio=0.3), x)
    assert chosen is not None
    assert chosen.weight is not None
    assert float(chosen.weight.sum()) == pytest.approx(20 * 24, rel=1e-5)


def select(m: FastVID, x: Tensor, **signals: Tensor | None) -> TokenSelection:
    n, size = x.shape[:2]
    received = signals.pop("received", None)
    chosen = m.select_tokens(VideoFeatures(x, received, (1, size), VideoState.start(n), **signals))
    assert chosen is not None
    return chosen


def test_signals() -> None:
    """The pooling head's signals are preferred; features and received attention stand in."""
    x, g = video(8, 10, 6), torch.Generator().manual_seed(0)
    low, high = torch.rand(8, 10, generator=g), torch.rand(8, 10, generator=g)
    m = FastVID(retention_ratio=0.3, context_share=0.0)
    assert torch.equal(select(m, x, probe=high, received=low).index, select(m, x, probe=high).index)
    assert not torch.equal(select(m, x, probe=high).index, select(m, x, received=low).index)
    with pytest.raises(ConfigError, match="needs received attention"):
        select(m, x)
    m = FastVID(retention_ratio=0.15, segments=2, tau=-1.0, context_share=1.0, anchor_step=8)
    for cut in (2, 6):
        vectors = torch.tensor([[1.0, 0.0]] * cut + [[0.0, 1.0]] * (8 - cut))
        index = select(m, x, received=low, frame_vectors=vectors).index
        assert sorted(set((index // 10).tolist())) == [cut - 1, 7]
    means = select(m, x, received=low, frame_vectors=x.mean(1))
    assert torch.equal(means.index, select(m, x, received=low).index)


def test_probe_attention_equals_the_head() -> None:
    g = torch.Generator().manual_seed(3)
    head = torch.nn.MultiheadAttention(12, 3, batch_first=True).eval()
    torch.nn.init.normal_(head.in_proj_bias, generator=g)
    probe, hidden = torch.randn(1, 1, 12, generator=g), torch.randn(4, 7, 12, generator=g)
    _, weights = head(probe.expand(4, -1, -1), hidden, hidden)
    found = probe_attention(hidden, probe, head.in_proj_weight, head.in_proj_bias, 3)
    torch.testing.assert_close(found, weights[:, 0], atol=1e-6, rtol=1e-5)
    assert (
        probe_attention(hidden.half(), probe, head.in_proj_weight, None, 3).dtype is torch.float32
    )


def test_what_it_asks_of_the_engine() -> None:
    m = FastVID()
    assert m.score_layer(26) == 25
    assert m.needs_head()
    assert m.resolved_positions() == "keep"
    assert FastVID(positions="renumber").resolved_positions() == "renumber"


def test_settings_are_checked() -> None:
    for bad in ({"policy": "paper"}, {"segments": 0}, {"tau": 2.0}, {"context_share": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            FastVID(**bad)
