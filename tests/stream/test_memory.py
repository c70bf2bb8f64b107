"""Memory stays bounded, whatever comes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlytom import EarlyTom, Stream
from earlytom.errors import ConfigError
from earlytom.stream.tokens import Part, TokenMemory
from tests.stream.clips import QUESTION, drifting, pushed

OFFICIAL = EarlyTom(policy="official", tau=0.9, merge_layers=(0, 2), retention_ratio=0.5)


def part(start: int, n: int, span: int = 4, scored: bool = True) -> Part:
    make = torch.Generator().manual_seed(start)
    return Part(
        start=start,
        stop=start + span,
        frames=1,
        features=torch.randn(n, 3, generator=make),
        cells=torch.arange(n) + 10 * start,
        score=torch.rand(n, generator=make) if scored else None,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=40),
    st.integers(1, 60),
    st.sampled_from(["thin", "drop"]),
)
def test_the_limit_holds_and_old_parts_never_have_more_left(sizes, limit, evict):
    memory, added = TokenMemory(limit, evict), 0
    for i, n in enumerate(sizes):
        memory, added = memory.add([part(4 * i, n)], 4 * i + 4), added + n
        assert len(memory) <= limit
        assert memory.parts or limit == 1
        assert memory.evicted == added - len(memory)
        starts = [p.start for p in memory.parts]
        assert starts == sorted(set(starts))
        assert memory.base == (starts[0] if starts else memory.base)
        halvings = [p.halvings for p in memory.parts]
        assert halvings == sorted(halvings, reverse=True)
        if evict == "drop":
            assert starts == list(range(starts[0], 4 * i + 1, 4))  # the newest ones, whole
            whole = [sizes[start // 4] for start in starts]
            low = max(1, limit * 3 // 4)  # a part that is larger was thinned when it came
            assert [len(p) for p in memory.parts] == [n if n <= limit else low for n in whole]
    if added <= limit:
        assert not memory.evictions
        assert [len(p) for p in memory.parts] == sizes


def test_thinning_keeps_the_tokens_of_largest_score():
    one = part(0, 8)
    thin = one.thinned(3)
    best = one.score.sort(descending=True).indices[:3].sort().values
    assert torch.equal(thin.cells, one.cells[best])
    assert torch.equal(thin.features, one.features[best])
    assert torch.equal(thin.score, one.score[best])


def test_without_score_the_most_different_tokens_stay():
    near = torch.tensor([1.0, 0, 0]) + 0.01 * torch.randn(6, 3)
    x = torch.cat([near, torch.tensor([[0.0, 1, 0], [0, 0, 1]])])
    thin = Part(0, 1, 1, x, torch.arange(8)).thinned(3)
    assert {6, 7} <= set(thin.cells.tolist())


def test_half_at_a_time_oldest_first():
    memory = TokenMemory(40)
    for i in range(4):
        memory = memory.add([part(4 * i, 10)], 4 * i + 4)
    memory = memory.add([part(16, 10)], 20)
    assert [len(p) for p in memory.parts] == [5, 5, 5, 5, 10]
    assert (memory.evictions, memory.evicted) == (1, 20)


def test_parts_beyond_the_span_go():
    memory = TokenMemory(1000, max_span=40)
    for i in range(20):
        memory = memory.add([part(4 * i, 2)], 4 * i + 4)
        assert 4 * i + 4 - memory.base <= 40
    assert memory.parts[0].start == memory.base
    assert memory.parts[-1].start == 76
    assert memory.scale == 1


def test_a_part_longer_than_the_span_is_not_forgotten():
    memory = TokenMemory(1000, max_span=40)
    memory = memory.add([part(0, 2), part(4, 8, span=60)], 64)
    assert [p.start for p in memory.parts] == [4]
    assert memory.base == 4


def test_places_beyond_the_span_are_divided():
    memory, scales = TokenMemory(1000, max_span=40, squeezes=True), []
    for i in range(45):
        memory = memory.add([part(4 * i, 2)], 4 * i + 4)
        scales.append(memory.scale)
    assert len(memory.parts) == 45
    assert (memory.base, memory.evicted) == (0, 0)
    assert scales == [1] * 10 + [2] * 10 + [4] * 20 + [8] * 5


def test_places_spread_again_when_the_oldest_parts_go():
    memory, scales = TokenMemory(100, evict="drop", max_span=40, squeezes=True), []
    for i in range(40):
        memory = memory.add([part(4 * i, 2 + 8 * (i > 30))], 4 * i + 4)
        scales.append(memory.scale)
    assert max(scales) == 4
    assert (memory.base, memory.scale) == (116, 2)


@pytest.mark.parametrize(
    ("evict", "positions", "window", "rounds"),
    [
        ("thin", "renumber", None, 20),
        ("drop", "keep", None, 6),
        ("thin", "keep", 4, 4),
        ("drop", "renumber", 4, 2),
    ],
)
def test_two_thousand_frames(qa, evict, positions, window, rounds):
    method = EarlyTom(
        policy="official", tau=0.9, merge_layers=(0, 2), retention_ratio=0.5, positions=positions
    )
    stream = Stream(qa, method, window=window, max_tokens=64, evict=evict)
    frames = drifting(50, seed=11)
    tokens, columns, held = [], [], []
    for _ in range(2 * rounds):
        pushed(stream, frames[:50], 10)
        report = stream.report()
        tokens.append(report.memory_tokens)
        columns.append(report.cache_columns)
        held.append(report.state_bytes)
    assert report.frames == 100 * rounds
    assert report.finished_frames > report.frames - 30
    assert max(tokens) <= 64
    assert max(columns) <= 64 + 2  # and the text in front
    assert max(held[rounds:]) <= 1.1 * max(held[:rounds])  # nothing grows
    assert report.prefilled_columns < 6 * report.kept_tokens  # evictions come in bulk
    assert report.evicted_tokens == report.kept_tokens - report.memory_tokens
    assert report.push.count == report.frames
    assert 0 < report.push.median <= report.push.p95 <= report.push.longest
    assert stream.ask(QUESTION, max_new_tokens=2).tokens <= 64 + 60
    positions_used = stream.frames - stream._memory.base
    if positions == "keep":
        assert positions_used * 4 + 512 <= 2048


def test_nothing_is_lost_below_the_limit(qa):
    frames = drifting(30, seed=12)
    small = pushed(Stream(qa, OFFICIAL, max_tokens=60), frames)
    large = pushed(Stream(qa, OFFICIAL), frames)
    assert small.report().evictions == large.report().evictions == 0
    assert torch.equal(small.next_logits(QUESTION), large.next_logits(QUESTION))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be an integer >= 1"),
        ({"max_tokens": 2.5}, "max_tokens must be an integer >= 1"),
        ({"evict": "none"}, "evict must be one of thin, drop"),
        ({"window": 0}, "window must be an integer >= 1"),
        ({"prefill": "never"}, "prefill must be one of push, ask"),
    ],
)
def test_bad_settings(qa, settings, message):
    with pytest.raises(ConfigError, match=message):
        Stream(qa, OFFICIAL, **settings)
