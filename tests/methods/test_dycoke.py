import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from earlytom.errors import ConfigError
from earlytom.method import Method
from earlytom.methods import DyCoke
from earlytom.methods.dycoke import exact_counts
from earlytom.ops.pairwise import decode_step, neighbour_cosine, pair_cosine
from tests.methods.merging import (
    RATIOS,
    check_bad_input,
    check_method,
    check_vectors,
    clip,
    selected,
    video,
)

OFFICIAL = DyCoke(policy="official", retention_ratio=0.5)


def test_vectors() -> None:
    check_vectors("dycoke_0*.npz", 4)
    check_vectors("dycoke_dp_*.npz", 3)


@pytest.mark.parametrize("ratio", RATIOS)
def test_exact_counts_order_determinism(ratio: float) -> None:
    check_method(DyCoke(retention_ratio=ratio), exact=True)


def test_official_order_and_determinism() -> None:
    check_method(OFFICIAL, exact=False)


def kept(method: DyCoke, x: Tensor) -> list[set[int]]:
    size = x.shape[1]
    index = selected(method, x).index.tolist()
    return [{i % size for i in index if i // size == t} for t in range(x.shape[0])]


def test_exact_follows_the_rule_one_token_at_a_time() -> None:
    x = clip(10, 12, still=0.5)
    for ratio in (0.3, 0.5, 0.8):
        found = kept(DyCoke(retention_ratio=ratio), x)
        for t, places in enumerate(found):
            if t % 4 == 0:
                assert len(places) == 12
                continue
            reference = t - (t % 4 if t % 4 < 3 else 1)
            similar = torch.cosine_similarity(x[t], x[reference], dim=1)
            assert places == set(similar.argsort()[: len(places)].tolist())
        pruned = [len(p) for t, p in enumerate(found) if t % 4]
        assert max(pruned) - min(pruned) <= 1


def test_below_a_quarter_every_window_keeps_a_share() -> None:
    x = clip(16, 20)
    found = kept(DyCoke(retention_ratio=0.1), x)
    assert [len(p) for p in found] == [8, 0, 0, 0] * 4
    assert sorted(found[0]) == [1, 3, 6, 8, 11, 13, 16, 18]
    similar = torch.cosine_similarity(x[8], x[4], dim=1)
    assert found[8] == set(similar.argsort()[:8].tolist())


def test_identical_frames_and_one_frame() -> None:
    x = clip(1, 16).repeat(8, 1, 1)
    assert [len(p) for p in kept(DyCoke(retention_ratio=0.25), x)] == [16, 0, 0, 0] * 2
    assert sorted(kept(DyCoke(retention_ratio=0.25), x[:1])[0]) == [2, 6, 10, 14]
    assert OFFICIAL.select_tokens(video(x[:1])) is None


def test_everything_is_kept_at_ratio_one() -> None:
    for policy in ("exact", "official"):
        assert DyCoke(policy=policy, retention_ratio=1.0).select_tokens(video(clip(9))) is None


def test_official_counts() -> None:
    """Table of the release at 32 x 196; an odd last frame is lost, small videos work."""
    for k, tokens in [(0.5, 4018), (0.7, 3098), (0.9, 2201), (0.95, 1971), (1.0, 1764)]:
        method = DyCoke(policy="official", merge_ratio=k)
        assert sum(method.official_counts(32, 196)[1]) == tokens
    assert OFFICIAL.official_counts(5, 9)[1] == [9, 3, 3, 3, 0]
    assert OFFICIAL.official_counts(4, 9)[1] == [9, 3, 9, 3]
    assert OFFICIAL.official_counts(2, 9)[1] == [9, 3]


@given(n=st.integers(1, 40), size=st.integers(1, 12), part=st.floats(0, 1))
def test_exact_counts_fit(n: int, size: int, part: float) -> None:
    wanted = max(1, int(n * size * part))
    reference, counts = exact_counts(n, size, wanted)
    assert sum(counts) == wanted
    assert all(0 <= c <= size for c in counts)
    assert all(r is None if t == 0 else 0 <= r < t for t, r in enumerate(reference))


@pytest.mark.parametrize("max_bytes", [1, 1 << 26])
def test_pair_cosine(max_bytes: int) -> None:
    x = clip(6, 5)
    found = pair_cosine(x, [0, 2, 5], [1, 0, 5], max_bytes)
    torch.testing.assert_close(found, torch.cosine_similarity(x[[0, 2, 5]], x[[1, 0, 5]], dim=-1))
    assert neighbour_cosine(x[:1]).shape == (0, 5)


@settings(max_examples=30, deadline=None)
@given(
    start=st.integers(0, 5),
    length=st.integers(1, 20),
    text=st.integers(1, 5),
    pruned=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_decode_step(start: int, length: int, text: int, pruned: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    row = torch.rand(3, start + length + text, generator=g)
    keep, attention, similarity = decode_step(row, None, start, length, pruned)
    assert float(similarity) == 0
    assert int(keep.sum()) == start + text + int(length * (1 - pruned))
    assert bool(keep[:start].all())
    assert bool(keep[start + length :].all())
    dropped, left = (
        attention[~keep[start : start + length]],
        attention[keep[start : start + length]],
    )
    assert not dropped.numel() or not left.numel() or dropped.max() <= left.min()
    keep, _, similarity = decode_step(row, attention, start, length, pruned)
    assert float(similarity) > 0.99
    assert bool(keep.all())


# ---------------------------------------------------------------------- decoding
def steps(method: DyCoke, rows: list[Tensor]) -> list[set[int]]:
    memory: dict[str, object] = {}
    found = [method.decode_keep(row, memory) for row in rows]
    return [set(k.nonzero().flatten().tolist()) for k in found if k is not None]


def test_decoding_sees_what_the_newest_token_looks_at() -> None:
    g = torch.Generator().manual_seed(0)
    first, other = torch.rand(4, 20, generator=g) ** 8, torch.rand(4, 20, generator=g) ** 8
    rows = [first, first * 0.9, other, other + 1e-4]
    best = [set(r.mean(0).argsort(descending=True)[:6].tolist()) for r in (first, other)]
    everything = set(range(20))
    exact, official = (DyCoke(decode_ratio=0.3, policy=p) for p in ("exact", "official"))
    assert steps(exact, rows) == [best[0], best[0], best[1], best[1]]
    assert steps(official, rows) == [best[0], everything, best[1], everything]


def test_decoding_starts_anew_when_a_turn_brings_another_video() -> None:
    rows = [torch.rand(2, 10), torch.rand(2, 14)]
    found = steps(DyCoke(decode_ratio=0.2), rows)
    assert [len(f) for f in found] == [2, 2]
    assert len(steps(DyCoke(decode_ratio=0.01), rows)[0]) == 1


def test_decode_layer() -> None:
    assert DyCoke().decode_layer(28) is None
    assert DyCoke(decode_ratio=1.0).decode_layer(28) is None
    assert DyCoke(decode_ratio=0.3).decode_layer(28) == 3
    assert DyCoke(decode_ratio=0.3, decode_from=2).decode_layer(4) == 2
    assert DyCoke().decode_keep(torch.rand(2, 5), {}) is None


def test_bad_videos() -> None:
    check_bad_input(DyCoke())
    check_bad_input(OFFICIAL)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"policy": "paper"}, "policy"),
        ({"merge_ratio": 0.7}, "no meaning"),
        ({"decode_ratio": 0.0}, "decode_ratio"),
        ({"decode_from": 0}, "decode_from"),
        ({"threshold": 1.5}, "threshold"),
        ({"policy": "official", "merge_ratio": 1.5}, "merge_ratio"),
        ({"policy": "official", "retention_ratio": 0.2}, "at least 0.25"),
    ],
)
def test_bad_settings(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DyCoke(**wrong)


def test_json() -> None:
    method = DyCoke(policy="official", merge_ratio=0.7)
    assert Method.from_json(method.to_json()) == method
