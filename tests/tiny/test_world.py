"""The generator: determinism, pixels, answers that follow from what is drawn, balance."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earlytom.errors import ConfigError
from earlytom.tiny import make_clip
from earlytom.tiny.clips import plan_clip, render_segments
from earlytom.tiny.composer import ShotPool, compose
from earlytom.tiny.facts import gather_facts
from earlytom.tiny.held_out import blind_accuracy, evaluation_set
from earlytom.tiny.questions import TYPES, QuestionWriter
from earlytom.tiny.render import render
from earlytom.tiny.vocabulary import UNKNOWN_ID, encode
from earlytom.tiny.world import COLORS, IMAGE_SIZE, SHAPES, make_shot


@pytest.fixture(scope="module")
def pool() -> ShotPool:
    rng = np.random.default_rng(5)
    return ShotPool([make_shot(rng) for _ in range(400)])


def test_clip_depends_on_seed_only() -> None:
    first, again, other = make_clip(3), make_clip(3), make_clip(4)
    assert first.frames.shape == (16, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert first.frames.dtype == np.uint8
    assert np.array_equal(first.frames, again.frames)
    assert first.questions == again.questions
    assert not np.array_equal(first.frames, other.frames)


@pytest.mark.parametrize("frames", [4, 8, 16, 32])
def test_lengths(frames: int) -> None:
    clip = make_clip(11, frames)
    assert len(clip.frames) == frames
    assert clip.questions


@pytest.mark.parametrize("bad", [{"num_frames": 5}, {"shots": 9}, {"noise": -1.0}])
def test_bad_arguments(bad: dict) -> None:
    with pytest.raises(ConfigError):
        make_clip(0, **bad)
    with pytest.raises(ConfigError):
        make_clip(-1)


def test_shots_option() -> None:
    for shots in (1, 2, 3, 4):
        clip = make_clip(21, shots=shots)
        assert clip.shots == shots
        answer = next(q.answer for q in clip.questions if q.type == "shots")
        assert answer == str(shots)


def test_rendering_a_frame_does_not_depend_on_the_others() -> None:
    shot = make_shot(np.random.default_rng(0))
    whole, _ = render(shot)
    part, _ = render(shot, [5, 2])
    assert np.array_equal(part, whole[[5, 2]])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9), frames=st.sampled_from([4, 8, 16]))
def test_questions_are_well_formed(seed: int, frames: int) -> None:
    segments, questions = plan_clip(seed, frames)
    assert sum(len(s.frames) for s in segments) == frames
    assert {q.type for q in questions} <= set(TYPES)
    for q in questions:
        assert len(set(q.candidates)) == 4
        assert q.candidates.count(q.answer) == 1
        assert UNKNOWN_ID not in encode(q.question)
        assert all(len(encode(c)) == 1 and encode(c)[0] != UNKNOWN_ID for c in q.candidates)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_answers_follow_from_the_visible_frames(seed: int) -> None:
    segments, questions = plan_clip(seed)
    facts = gather_facts(segments)
    everything = [s for part in facts.segments for s in part]
    for q in questions:
        seen = [s for _, s in q.about]
        if q.type == "color":
            same = [s for s in everything if SHAPES[s.shape] == q.about[0][0]]
            assert [COLORS[s.colors[0]] for s in same] == [q.answer]
        if q.type == "motion":
            dx, dy = seen[0].travel
            expected = {"left": -dx, "right": dx, "up": -dy, "down": dy}
            assert max(expected, key=expected.__getitem__) == q.answer
        if q.type == "rel":
            dx, dy = seen[0].xy[0] - seen[1].xy[0]
            expected = {"left": -dx, "right": dx, "above": -dy, "below": dy}
            assert max(expected, key=expected.__getitem__) == q.answer
        if q.type == "shots":
            assert q.answer == str(len(segments))
        if q.type == "after":
            following = facts.segments[seen[0].segment + 1]
            assert [SHAPES[s.shape] for s in following] == [q.answer]


def test_shapes_are_visible_in_the_pixels() -> None:
    """The drawn colour at a shape's centre is near its palette colour (rings are hollow)."""
    segments, _ = plan_clip(2, shots=1)
    frames = render_segments(segments, noise=0.0)
    shot = segments[0].shot
    for thing in shot.things:
        if SHAPES[thing.shape] == "ring":
            continue
        for row, t in enumerate(segments[0].frames):
            if thing.visible[t]:
                x, y = np.round(thing.xy[t] - shot.jitter[t]).astype(int)
                base = frames[row, y, x].astype(int) - frames[row, 0, 0].astype(int)
                assert np.abs(base).max() > 30


def test_answers_are_balanced(pool: ShotPool) -> None:
    rng = np.random.default_rng(1)
    answers: dict[str, Counter[str]] = {}
    for _ in range(1200):
        for q in QuestionWriter(rng, compose(rng, pool, 16)).write():
            answers.setdefault(q.type, Counter())[q.answer] += 1
    for kind in ("count", "rel", "motion", "moment", "shots"):
        share = max(answers[kind].values()) / sum(answers[kind].values())
        assert share < 0.32, (kind, answers[kind])


def test_evaluation_set_has_equal_types_and_answers() -> None:
    plans = evaluation_set(240, seed=4)
    types = Counter(q.type for p in plans for q in p.questions)
    assert set(types) == set(TYPES)
    assert set(types.values()) == {20}
    shots = Counter(q.answer for p in plans for q in p.questions if q.type == "shots")
    assert set(shots.values()) == {5}


def test_question_text_alone_does_not_help() -> None:
    plans = evaluation_set(720, seed=4)
    blind = blind_accuracy(plans, 16)
    assert np.mean(list(blind.values())) < 0.30
