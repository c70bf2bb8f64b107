"""The KV cache of a stream is that of a fresh prefill, before and after every question."""

from __future__ import annotations

import pytest
import torch

import earlytom
from earlytom import EarlyTom, Stream
from earlytom.errors import ConfigError
from earlytom.methods import load_method
from earlytom.models import find_adapter
from earlytom.stream import causal
from tests.stream.clips import QUESTION, drifting, pushed, tokens

OFFICIAL = EarlyTom(policy="official", tau=0.9, merge_layers=(0, 2), retention_ratio=0.4)
KEPT = EarlyTom(
    policy="official", tau=0.9, merge_layers=(0, 2), retention_ratio=0.4, positions="keep"
)
PLACED = EarlyTom(policy="paper", tau=0.9, merge_layers=(0, 2), retention_ratio=0.4, max_window=6)
OTHER = "which shape moves first"


@torch.no_grad()
def fresh_logits(qa, stream: Stream, question: str, keep: bool) -> torch.Tensor:
    """Logits of one forward pass over the whole prompt, without cache."""
    adapter = stream.adapter
    prefix, suffix = stream._words(question)
    embed = qa.model.get_input_embeddings()
    cells, features = tokens(stream)
    newline = adapter.inner.image_newline[None]
    rows = [embed(torch.tensor(prefix)), features, newline, embed(torch.tensor(suffix))]
    base, scale = stream._memory.base * 4, stream._memory.scale
    start = len(prefix) + -(-(stream.frames * 4 - base) // scale)
    position = [*range(len(prefix)), *(len(prefix) + (c - base) // scale for c in cells)]
    position += range(start, start + 1 + len(suffix))
    x = torch.cat(rows)
    out = qa.model(
        inputs_embeds=x[None],
        attention_mask=torch.ones(1, len(x), dtype=torch.long),
        position_ids=torch.tensor([position if keep else list(range(len(x)))]),
        use_cache=False,
    )
    return out.logits[0, -1]


@pytest.mark.parametrize("prefill", ["push", "ask"])
@pytest.mark.parametrize("method", [OFFICIAL, KEPT], ids=["renumber", "keep"])
@pytest.mark.parametrize("evict", ["thin", "drop"])
def test_reuse_equals_a_fresh_prefill(qa, method, prefill, evict):
    stream = Stream(qa, method, prefill=prefill, max_tokens=40, evict=evict)
    for n, frame in enumerate(drifting(40, seed=6), start=1):
        stream.push(frame)
        if n % 8 == 0:
            expected = fresh_logits(qa, stream, QUESTION, method is KEPT)
            found = stream.next_logits(QUESTION)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert stream.report().evictions > 0


@pytest.mark.parametrize("prefill", ["push", "ask"])
@pytest.mark.parametrize("evict", ["thin", "drop"])
def test_places_are_squeezed_into_the_context(qa, monkeypatch, prefill, evict):
    config = find_adapter(qa.model).language_model.config
    monkeypatch.setattr(config, "max_position_embeddings", 64)  # 14 frames of 4 tokens
    stream, scales = Stream(qa, PLACED, prefill=prefill, max_tokens=40, evict=evict), set()
    for n, frame in enumerate(drifting(40, seed=6), start=1):
        stream.push(frame)
        scales.add(stream._memory.scale)
        if n % 4 == 0:
            expected = fresh_logits(qa, stream, QUESTION, keep=True)
            found = stream.next_logits(QUESTION)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert scales == {1, 2, 4}
    if evict == "thin":
        assert stream.parts[0].start == 0  # nothing is forgotten for want of positions


@pytest.mark.parametrize(
    ("method", "window"),
    [(OFFICIAL, None), (KEPT, None), (load_method("afterimage", retention_ratio=0.4), 12)],
    ids=["renumber", "keep", "weights"],
)
def test_logits_are_those_of_the_offline_prompt(qa, method, window):
    frames = drifting(12, seed=7)
    stream = pushed(Stream(qa, method, window=window), frames, 5)
    with (causal(method) if window is None else method)(qa.model), torch.no_grad():
        expected = qa.model(**qa.preprocessor(frames, QUESTION)).logits[0, -1]
    if window is not None:
        assert stream.parts[0].bias is not None
    torch.testing.assert_close(stream.next_logits(QUESTION), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", [OFFICIAL, KEPT, load_method("afterimage", retention_ratio=0.4)])
def test_asking_changes_nothing(qa, method):
    frames = drifting(30, seed=8)
    silent, asked = Stream(qa, method), Stream(qa, method)
    for i, frame in enumerate(frames):
        silent.push(frame)
        asked.push(frame)
        if i % 7 == 3:
            first = asked.ask(QUESTION, max_new_tokens=5)
            asked.ask(OTHER, max_new_tokens=3)
            again = asked.ask(QUESTION, max_new_tokens=5)
            assert first.token_ids == again.token_ids
            if silent.parts:  # before, only the one that was asked has read the text in front
                assert asked.report().cache_columns == silent.report().cache_columns
    assert torch.equal(asked.next_logits(QUESTION), silent.next_logits(QUESTION))
    for a, b in zip(asked._cache.tensors(), silent._cache.tensors(), strict=True):
        assert torch.equal(a, b)


def test_finished_tokens_are_prefilled_once(qa):
    stream = pushed(Stream(qa, OFFICIAL), drifting(30, seed=9))
    report = stream.report()
    assert report.prefilled_columns == report.cache_columns == len(stream._memory) + 2
    lazy = pushed(Stream(qa, OFFICIAL, prefill="ask"), drifting(30, seed=9))
    assert lazy.report().prefilled_columns == 0
    answer = lazy.ask(QUESTION, max_new_tokens=2)
    suffix = len(lazy._words(QUESTION)[1])
    prompt = report.cache_columns + answer.open_tokens + 1 + suffix
    assert lazy.report().prefilled_columns == prompt - 1  # the last one is a step of generate
    assert answer.token_ids == stream.ask(QUESTION, max_new_tokens=2).token_ids


def test_an_interrupted_question_leaves_no_trace(qa, monkeypatch):
    stream = pushed(Stream(qa, OFFICIAL), drifting(30, seed=9))
    before, columns = stream.next_logits(QUESTION), stream.report().cache_columns
    layer = stream.adapter.decoder_layers[1]  # layer 0 has written its keys by then

    def stop(*args):
        raise KeyboardInterrupt

    handle = layer.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        stream.ask(OTHER)
    with pytest.raises(KeyboardInterrupt):  # the frames count, their prefill is made up for
        stream.push(drifting(30, seed=10))
    handle.remove()
    assert stream.frames == 60
    whole = pushed(Stream(qa, OFFICIAL), torch.cat([drifting(30, seed=9), drifting(30, seed=10)]))
    torch.testing.assert_close(stream.next_logits(QUESTION), whole.next_logits(QUESTION))
    assert columns < stream.report().cache_columns
    assert not torch.equal(before, stream.next_logits(QUESTION))


def test_text_comes_as_it_is_generated(qa):
    stream, pieces = pushed(Stream(qa, OFFICIAL), drifting(5)), []
    answer = stream.ask(QUESTION, max_new_tokens=5, stream=pieces.append)
    assert "".join(pieces).strip() == answer.text
    assert len(answer.token_ids) == 5
    assert 0 < answer.first_token <= answer.total


def test_a_method_on_the_model_is_in_the_way(qa):
    stream = pushed(Stream(qa, OFFICIAL), drifting(5))
    with OFFICIAL(qa.model):
        for use in (lambda: stream.push(drifting(1)), lambda: stream.ask(QUESTION),
                    lambda: Stream(qa, OFFICIAL)):  # fmt: skip
            with pytest.raises(ConfigError, match="earlytom is on the model"):
                use()
    assert stream.frames == 5
    stream.ask(QUESTION, max_new_tokens=1)
    assert earlytom.active_method(qa.model) is None
