"""The splits: what they hold, that they depend on the seed only, that training never sees them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from earlytom.bench.suite import SPLITS, SuiteClip, build_split
from earlytom.errors import ConfigError
from earlytom.tiny.held_out import evaluation_set
from earlytom.tiny.vocabulary import UNKNOWN_ID, encode


@pytest.fixture(scope="module")
def built() -> dict[str, list[SuiteClip]]:
    return {name: build_split(name, 1, 48) for name in SPLITS}


def asked(clips: list[SuiteClip]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(q.question, q.answer, q.candidates) for c in clips for q in c.questions]


def test_a_split_depends_on_its_arguments_only(built):
    for name in ("standard", "motion"):
        again = build_split(name, 1, 48)
        assert asked(again) == asked(built[name])
        assert np.array_equal(again[0].render(), built[name][0].render())
        assert asked(build_split(name, 2, 48)) != asked(built[name])


@pytest.mark.parametrize("name", SPLITS)
def test_types_are_equally_frequent_and_answers_nearly(built, name):
    split, clips = SPLITS[name], built[name]
    types = Counter(q.type for c in clips for q in c.questions)
    assert set(types) == set(split.types)
    assert len(set(types.values())) == 1
    assert sum(types.values()) >= 48
    assert [c.number for c in clips] == list(range(len(clips)))
    assert max(len(c.questions) for c in clips) <= split.per_clip
    counts = Counter((q.type, q.answer) for c in build_split(name, 3, 160) for q in c.questions)
    kinds = Counter(k for k, _ in counts)
    for (kind, _), n in counts.items():
        if kinds[kind] >= 4:
            assert n <= 0.45 * sum(v for (k, _), v in counts.items() if k == kind), kind


@pytest.mark.parametrize("name", SPLITS)
def test_every_answer_is_among_its_candidates_and_in_the_vocabulary(built, name):
    for clip in built[name]:
        for q in clip.questions:
            assert q.answer in q.candidates
            assert q.answer in clip.accepted(q)
            assert not set(clip.accepted(q)) & (set(q.candidates) - {q.answer})
            assert UNKNOWN_ID not in encode(q.question)


def test_splits_are_what_they_say(built):
    pixels = {name: clips[0].render().astype(float) for name, clips in built.items()}
    assert {name: len(p) for name, p in pixels.items()} == {
        name: split.frames for name, split in SPLITS.items()
    }
    assert SPLITS["long"].frames >= 64

    def change(name: str) -> float:
        """Mean absolute difference of neighbouring frames within shots."""
        values = []
        for clip in built[name][:6]:
            frames, start = clip.render().astype(float), 0
            for segment in clip.segments:
                n = len(segment.frames)
                values.append(np.abs(np.diff(frames[start : start + n], axis=0)).mean())
                start += n
        return float(np.mean(values))

    assert change("static") < 0.5 * change("standard") < change("standard") < change("motion")
    sizes = {n: {t.size for c in built[n] for s in c.segments for t in s.shot.things}
             for n in ("standard", "detail")}  # fmt: skip
    assert max(sizes["detail"]) < min(sizes["standard"])
    assert all(1 <= len(c.segments) <= 2 for c in built["static"])
    assert all(len(c.segments) == 4 for c in built["motion"])


def test_no_clip_is_shared_with_training_evaluation_or_another_split(built):
    """Seeds of shots are drawn from 2**31: equal ones mean an equal stream."""
    seeds = [{s.shot.seed for c in clips for s in c.segments} for clips in built.values()]
    seeds.append({s.shot.seed for c in evaluation_set(48, 1) for s in c.segments})
    from earlytom.tiny.world import make_shot

    # training draws its bank from (seed, 3 + part, index)
    bank = {
        make_shot(np.random.default_rng((seed, 3 + part, i))).seed
        for seed in (0, 1)
        for part in (0, 1)
        for i in range(200)
    }
    seeds.append(bank)
    assert sum(map(len, seeds)) == len(set().union(*seeds))


def test_open_answers_to_order_are_all_shapes_of_the_shot(built):
    several = 0
    for clip in built["standard"] + built["detail"]:
        for q in clip.questions:
            several += q.type == "order" and len(clip.accepted(q)) > 1
            assert q.type == "order" or clip.accepted(q) == (q.answer,)
    assert several


def test_bad_arguments():
    for bad in (("nowhere", 1, 10), ("standard", -1, 10), ("standard", 1, 0)):
        with pytest.raises(ConfigError):
            build_split(*bad)
