"""Answers behind shared caches and remembered layers are those of ordinary calls."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

from earlytom.bench.answering import Examiner
from earlytom.bench.contenders import FULL, Entry, contenders, entry
from earlytom.bench.suite import SuiteClip
from earlytom.hf.api import active_method
from earlytom.tiny import weights_path
from earlytom.tiny.clips import plan_clip
from tests.families import own_attributes


def small_clip(seed: int, frames: int = 4, questions: int = 2) -> SuiteClip:
    segments, every = plan_clip(seed, frames)
    by_length = sorted(every, key=lambda q: len(q.question.split()))
    chosen = [by_length[0], by_length[-1], *by_length[1:-1]][:questions]
    return SuiteClip(seed, segments, chosen)


@pytest.fixture(scope="module")
def examiner() -> Examiner:
    model = AutoModelForImageTextToText.from_pretrained(weights_path()).eval()
    return Examiner(model.float())


def entries(model: object, ratios: tuple[float, ...]) -> list[Entry]:
    found = [entry(c, r, "auto", model, 6) for c in contenders() for r in ratios]
    return [Entry(FULL, 1.0, None), *(e for e in found if e.error is None)]


def test_every_contender_answers_as_in_plain_calls(examiner):
    """All methods on the same clip, one after the other, twice: whatever is remembered fits."""
    everyone = entries(examiner.model, (0.25,))
    assert len({e.label for e in everyone}) > 20
    everyone += [e for e in entries(examiner.model, (0.1,)) if e.label == "evs"]
    seen = {}
    with examiner.replay:
        for clip, some in ((small_clip(1), everyone), (small_clip(2), everyone[::5])):
            examiner.open(clip)
            plain = {}
            for e in some:
                plain[e] = torch.stack([examiner.plain(e.method, i) for i in range(2)])
            for _ in range(2):
                for e in some:
                    logits = examiner.ask(e.method).logits
                    assert torch.allclose(logits, plain[e], atol=2e-3, rtol=0), e.label
                    seen[e.label, e.retention_ratio] = logits
    assert examiner.replay.hits > 500
    assert not torch.equal(seen["evs", 0.25], seen["evs", 0.1])
    assert active_method(examiner.model) is None


def test_the_model_is_left_as_it_was(examiner):
    before = own_attributes(examiner.model)
    with examiner.replay:
        examiner.open(small_clip(3))
        examiner.run(None, None)
        for e in entries(examiner.model, (0.25,)):
            if e.label in ("tome", "fastv", "earlytom-official", "framefusion"):
                examiner.run(e.method, examiner.time(e.method))
    assert own_attributes(examiner.model) == before


def test_replay_forgets_what_does_not_fit(examiner):
    replay, capacity = examiner.replay, examiner.replay.capacity
    try:
        replay.capacity = 4 << 20
        with replay:
            examiner.open(small_clip(4))
            first = examiner.ask(None).logits
            assert 0 < replay._held <= replay.capacity
            assert torch.equal(examiner.ask(None).logits, first)
    finally:
        replay.capacity = capacity
    assert replay._held == 0


def test_outcome_of_a_timed_run(examiner):
    with examiner.replay:
        examiner.open(small_clip(5, frames=8))
        full = examiner.run(None, examiner.time(None))
        method = next(c for c in contenders(("earlytom-budget",))).build(6, retention_ratio=0.25)
        less = examiner.run(method, None)
        method = next(c for c in contenders(("fastv",))).build(6, retention_ratio=0.25)
        inside = examiner.run(method, None)
    assert full.retention == full.llm_retention == 1
    assert full.flops[0] == full.flops[3] == less.flops[3]
    assert less.flops[0] < full.flops[0]
    assert less.retention == less.llm_retention == pytest.approx(0.25, abs=0.01)
    assert inside.retention == 1
    assert inside.llm_retention == pytest.approx(0.25, abs=0.01)
    assert inside.flops[:2] == full.flops[:2]
    assert inside.flops[2] < full.flops[2]
    assert min(full.timed) > 0
    assert full.peak_rss_mib > 50
    assert less.timed is None
    assert set(full.correct) | set(full.open) <= {0, 1}
