"""Marks, spans and the stages of a call, by counting and order, never by how long things take."""

from __future__ import annotations

import pytest
import torch

from earlytom.clock import Mark, SpanClock, span, spanned
from earlytom.pipeline.timing import StageClock
from tests.families import PROMPTS, Family

CPU = torch.device("cpu")


def test_marks_are_ordered() -> None:
    a = Mark(CPU)
    b = Mark(CPU)
    assert b.since(a) >= 0 >= a.since(b)


def test_spans_are_watched_only_on_request() -> None:
    @spanned("work")
    def work() -> int:
        with span("inside"):  # part of "work"
            return 3

    clock = SpanClock(CPU)
    assert work() == 3
    assert clock.seconds() == {}
    with clock.on():
        assert work() == 3
        with span("other"):
            pass
    work()
    assert set(clock.seconds()) == {"work", "other"}
    assert len(clock._marks["work"]) == 1


def test_a_failing_span_does_not_swallow_later_ones() -> None:
    clock = SpanClock(CPU)
    with clock.on():
        with pytest.raises(ZeroDivisionError), span("broken"):
            raise ZeroDivisionError
        with span("next"):
            pass
    assert list(clock.seconds()) == ["next"]


@pytest.mark.parametrize("method", ["earlytom", "afterimage", "fastv"])
def test_the_engine_opens_spans_and_the_plain_model_none(method: str) -> None:
    from earlytom import load_method

    family = Family("llava_onevision")
    model, inputs = family.model(), family.inputs(PROMPTS["one_video"])
    plain, clock = SpanClock(CPU), SpanClock(CPU)
    with torch.no_grad():
        with plain.on():
            model(**inputs)
        with load_method(method, retention_ratio=0.75)(model), clock.on():
            model(**inputs)
    assert plain.seconds() == {}
    expected = {"earlytom": "merge", "afterimage": "gather", "fastv": "inner"}[method]
    assert {expected, "assemble"} <= set(clock.seconds())


def test_stages_follow_each_other_and_only_the_prompt_counts() -> None:
    family = Family("llava_onevision")
    model, inputs = family.model(), family.inputs(PROMPTS["one_video"])
    with StageClock(model) as clock, torch.no_grad():
        assert (clock.vision, clock.tokens, clock.prefill) == (0.0, 0.0, 0.0)
        out = model(**inputs, use_cache=True)
        seen = clock.vision, clock.tokens, clock.prefill
        model(input_ids=inputs["input_ids"][:, :1], past_key_values=out.past_key_values)
    assert min(seen) > 0
    assert (clock.vision, clock.tokens, clock.prefill) == seen
    assert clock.prompt_length == inputs["input_ids"].shape[1]
    assert not model.model.vision_tower._forward_hooks
