"""A stream ends up where the offline engine does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlytom import EarlyTom, Stream
from earlytom.errors import ConfigError
from earlytom.methods import load_method
from earlytom.pipeline import VideoQA
from earlytom.stream import causal
from earlytom.tiny import make_clip
from tests.stream.clips import (
    QUESTION,
    assert_same_tokens,
    drifting,
    offline,
    pushed,
    tokens,
)

TAU = 0.9  # cuts the clips of these tests into segments of all lengths
OFFICIAL = {"policy": "official", "tau": TAU, "retention_ratio": 0.4}
PAPER = {"policy": "paper", "tau": TAU, "max_window": 5, "retention_ratio": 0.4}
CAUSAL = {
    "official": EarlyTom(**OFFICIAL, merge_layers=(0, 1, 2)),
    "official, kept positions": EarlyTom(**OFFICIAL, merge_layers=(0, 2), positions="keep"),
    "official, one layer": EarlyTom(**OFFICIAL, merge_layers=(1,)),
    "official, own layers": EarlyTom(**OFFICIAL),
    "official, last layer": EarlyTom(**OFFICIAL, merge_layers=(1, 3)),
    "official, no merges": EarlyTom(**OFFICIAL, merge_layers=()),
    "official, at the embeddings": EarlyTom(**OFFICIAL, merge_layers=(-1,)),
    "official, embeddings and layer": EarlyTom(**OFFICIAL, merge_layers=(-1, 1)),
    "official, average": EarlyTom(**OFFICIAL, merge_layers=(0, 2), fuse="average"),
    "official, longer": EarlyTom(**OFFICIAL, merge_layers=(0, 2), max_window=9),
    "paper": EarlyTom(**PAPER, merge_layers=(0, 1, 2)),
    "paper, threshold": EarlyTom(**PAPER, merge_layers=(0, 2), tau_merge=0.97),
    "paper, merged rest": EarlyTom(
        **PAPER, merge_layers=(0,), merge_rest=True, selection="diversity"
    ),
    **{
        f"{name}, {selection}": EarlyTom(**given, merge_layers=(0, 2), selection=selection)
        for name, given in (("official", OFFICIAL), ("paper", PAPER))
        for selection in ("topk", "window", "global", "uniform", "diversity", "none")
    },
}


@pytest.fixture(scope="module")
def clip():
    return drifting(30, seed=1)


@pytest.mark.parametrize("name", CAUSAL)
def test_stream_equals_offline(qa, clip, name):
    method = CAUSAL[name]
    expected = offline(qa, clip, causal(method))
    stream = pushed(Stream(qa, method), clip)
    assert_same_tokens(stream, expected)
    assert stream.frames == 30
    assert len(stream.parts) > 1
    answer = stream.ask(QUESTION, max_new_tokens=4)
    assert answer.token_ids == qa.ask(clip, QUESTION, causal(method), max_new_tokens=4).token_ids
    assert answer.tokens == len(expected.cells)


def test_stream_equals_offline_after_every_frame(qa, clip):
    method = CAUSAL["official"]
    stream = Stream(qa, method)
    for n, frame in enumerate(clip[:20], start=1):
        stream.push(frame)
        assert_same_tokens(stream, offline(qa, clip[:n], causal(method)))


@pytest.mark.parametrize("policy", [OFFICIAL, PAPER])
def test_without_selection_it_is_the_plain_method(qa, clip, policy):
    method = EarlyTom(**policy, merge_layers=(0, 1, 2), selection="none")
    assert_same_tokens(pushed(Stream(qa, method), clip, 7), offline(qa, clip, method))


@pytest.mark.parametrize("name", ["official", "paper", "official, own layers"])
def test_frames_are_merged_as_by_the_plain_method(qa, clip, name):
    report = offline(qa, clip, CAUSAL[name]).report.videos[0]
    stream = pushed(Stream(qa, CAUSAL[name]), clip)
    parts = [*stream.parts, *stream.open_parts()]
    assert report.frames_out < 30
    assert sum(p.frames for p in parts) == report.frames_out
    assert {c // 4 for c in tokens(stream)[0]} <= set(report.first)


def test_segments_share_out_all_frames_and_keep_exact_budgets(qa, clip):
    method = EarlyTom(**PAPER, merge_layers=(0, 2), selection="diversity")
    stream = pushed(Stream(qa, method), clip)
    parts = [*stream.parts, *stream.open_parts()]
    assert [p.start for p in parts] == [0, *(p.stop for p in parts[:-1])]
    assert parts[-1].stop == 30
    for p in parts:
        assert len(p) == min(method.token_budget(p.stop - p.start, 4), p.frames * 4)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=30),
    st.integers(0, 50),
    st.sampled_from(["official", "paper, threshold", "official, at the embeddings", "window"]),
)
def test_any_split_into_blocks_gives_the_same_state(qa, blocks, seed, name):
    frames = drifting(24, seed)
    options = {"window": 5} if name == "window" else {}
    method = CAUSAL.get(name, EarlyTom(retention_ratio=0.3))
    one = pushed(Stream(qa, method, **options), frames)
    other, start = Stream(qa, method, **options), 0
    for n in [*blocks, 24]:
        if start < 24:
            other.push(frames[start : start + n])
        start += n
    (cells, features), (found, values) = tokens(one), tokens(other)
    assert cells == found
    torch.testing.assert_close(features, values, atol=1e-5, rtol=1e-4)
    assert [(p.start, p.stop) for p in one.parts] == [(p.start, p.stop) for p in other.parts]
    assert one.report().cache_columns == other.report().cache_columns


@pytest.mark.parametrize("policy", ["official", "paper"])
def test_generated_clips_on_the_shipped_model(policy):
    qa = VideoQA.load(device="cpu")
    method = EarlyTom(policy=policy, max_window=6, merge_layers=(1, 4, 7), tau=0.8)
    clip = make_clip(3)
    frames = torch.from_numpy(clip.frames)
    stream = pushed(Stream(qa, method), frames, 3)
    assert_same_tokens(stream, offline(qa, frames, causal(method)), atol=1e-4)
    for question in clip.questions[:2]:
        expected = qa.ask(frames, question.question, causal(method)).text
        assert stream.ask(question.question).text == expected


# ---------------------------------------------------------------------- windows
@pytest.mark.parametrize("name", ["earlytom", "afterimage", "vidcom2", "tome", "visionzip"])
def test_a_clip_of_one_window_is_the_offline_method(qa, name):
    frames, method = drifting(6, seed=2), load_method(name, retention_ratio=0.5)
    for window in (6, 8):  # finished, and still open
        stream = pushed(Stream(qa, method, window=window), frames, 4)
        assert len(stream.parts) == (window == 6)
        assert_same_tokens(stream, offline(qa, frames, method))
        answer = stream.ask(QUESTION, max_new_tokens=4)
        assert answer.token_ids == qa.ask(frames, QUESTION, method, max_new_tokens=4).token_ids


def test_windows_are_clips_of_their_own(qa):
    frames, method = drifting(14, seed=3), EarlyTom(retention_ratio=0.3)
    stream = pushed(Stream(qa, method, window=5), frames, 3)
    assert [len(p) for p in stream.parts] == [6, 6]  # ceil(0.3 * 5 * 4)
    for p in [*stream.parts, *stream.open_parts()]:
        expected = offline(qa, frames[p.start : p.stop], method)
        assert p.cells.tolist() == [c + 4 * p.start for c in expected.cells]
        torch.testing.assert_close(p.features, expected.features, atol=1e-5, rtol=1e-4)


def test_without_method_everything_is_kept(qa):
    frames = drifting(11, seed=4)
    stream = pushed(Stream(qa), frames, 4)
    assert_same_tokens(stream, offline(qa, frames, None))
    assert stream.ask(QUESTION, max_new_tokens=4).text == (
        qa.ask(frames, QUESTION, max_new_tokens=4).text
    )


def test_a_causal_policy_can_run_in_windows(qa):
    frames, method = drifting(6, seed=5), CAUSAL["official"]
    assert_same_tokens(pushed(Stream(qa, method, window=6), frames), offline(qa, frames, method))


def test_a_budget_has_no_causal_form():
    with pytest.raises(ConfigError, match="needs the whole clip"):
        causal(EarlyTom())
    with pytest.raises(ConfigError, match="only EarlyTom"):
        causal(load_method("vidcom2"))
