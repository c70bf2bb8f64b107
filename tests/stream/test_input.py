"""Bad input is refused in one line, and the stream goes on as if it had not been there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from earlytom import ConfigError, EarlyTom, Stream, UnsupportedModelError, VideoError
from earlytom.methods import load_method
from earlytom.pipeline import VideoQA
from earlytom.preprocess import Preprocessor
from tests.conftest import ALL_FAMILIES
from tests.qwen import CONFIG, QwenFamily
from tests.stream.clips import QUESTION, drifting, pushed, tokens

OFFICIAL = EarlyTom(policy="official", tau=0.9, merge_layers=(0, 2), retention_ratio=0.4)
GOOD = drifting(1)[0]
PAIR = torch.stack([GOOD, GOOD])


@pytest.mark.parametrize(
    ("frames", "times", "message"),
    [
        (GOOD.float(), 9, "uint8"),
        (GOOD[..., 0], 9, "uint8 tensor"),
        (GOOD[..., :2], 9, "uint8 tensor"),
        (PAIR[None], 9, "uint8 tensor"),
        (GOOD[:0], 9, "uint8 tensor"),
        ("frame.png", 9, "frames must be"),
        ([], 9, "frames must be"),
        ([GOOD, GOOD[:9]], [9, 10], "frames must be"),
        (GOOD[:16], 9, "one size: got 32x16 after 32x32"),
        (GOOD, 1.0, "timestamps must go up: got 1 s after 4 s"),
        (GOOD, 4.0, "timestamps must go up"),
        (PAIR, [6, 5], "timestamps must go up: got 5 s after 6 s"),
        (PAIR, [6], "2 frames need 2 timestamps"),
        (GOOD, [5, 6], "1 frames need 1 timestamps"),
        (GOOD, math.nan, "finite number"),
        (GOOD, "5", "finite number"),
        (GOOD, [None], "finite number"),
        (GOOD, True, "1 frames need 1 timestamps"),
    ],
)
def test_bad_frames_leave_the_state_alone(qa, frames, times, message):
    stream = Stream(qa, OFFICIAL)
    stream.push(drifting(5), [0, 1, 2, 3, 4])
    before, report = tokens(stream), stream.report()
    with pytest.raises(VideoError, match=message):
        stream.push(frames, times)
    assert stream.report() == report
    assert tokens(stream)[0] == before[0]
    assert torch.equal(tokens(stream)[1], before[1])
    stream.push(GOOD, 5.0)
    assert stream.frames == 6


def test_arrays_lists_and_tensors_are_the_same(qa):
    frames = drifting(6)
    streams = [Stream(qa, OFFICIAL) for _ in range(3)]
    streams[0].push(frames, torch.arange(6.0))
    streams[1].push(list(frames.numpy()), list(range(6)))
    for i, frame in enumerate(frames.numpy()):
        streams[2].push(frame, np.float64(i))
    answers = {s.ask(QUESTION, max_new_tokens=3).text for s in streams}
    assert len(answers) == 1
    assert {s.report().seconds for s in streams} == {5.0}


def test_without_timestamps_a_frame_is_a_second(qa):
    stream = Stream(qa, OFFICIAL)
    stream.push(drifting(3))
    stream.push(GOOD, 7.5)
    stream.push(GOOD)
    assert stream.ask(QUESTION, max_new_tokens=1).time == 8.5


def test_nothing_to_ask_about(qa):
    stream = Stream(qa, OFFICIAL)
    for use in (stream.ask, stream.next_logits):
        with pytest.raises(VideoError, match="no frame was pushed yet"):
            use(QUESTION)
    report = stream.report()
    assert (report.frames, report.retention, report.push) == (0, None, None)
    pushed(stream, drifting(2)).ask(QUESTION, max_new_tokens=1)


def test_bad_questions(qa):
    stream = pushed(Stream(qa, OFFICIAL), drifting(3))
    with pytest.raises(ConfigError, match="must not contain the placeholder"):
        stream.ask("what is <video>")
    with pytest.raises(ConfigError, match="max_new_tokens must be an integer >= 1"):
        stream.ask(QUESTION, max_new_tokens=0)
    stream.ask(QUESTION, max_new_tokens=1)


@pytest.mark.parametrize(
    ("method", "window"), [(OFFICIAL, None), (OFFICIAL, 2), (None, None), (None, 2)]
)
def test_broken_features_are_an_error(folder, method, window):
    qa = VideoQA.load(folder, device="cpu")
    stream = Stream(qa, method, window=window)
    stream.push(drifting(3))
    before = stream.report()
    weight = stream.adapter.layers[0].mlp.fc1.weight
    good = weight.detach().clone()
    weight.data.fill_(math.nan)
    with pytest.raises(VideoError, match="NaN or infinite"):
        stream.push(drifting(4))
    weight.data.copy_(good)
    assert stream.report() == before
    stream.push(drifting(4))
    assert stream.frames == 7


# ---------------------------------------------------------------------- models and methods
@pytest.mark.parametrize(
    ("method", "message"),
    [
        (EarlyTom(policy="paper", tau=0.9), "segments of policy 'paper' may never end"),
        (
            EarlyTom(policy="official", merge_layers=(0, 1), positions="respace"),
            "'respace' needs the length",
        ),
        (EarlyTom(policy="official", inner_merge_layer=1), "acts inside the language model"),
        (load_method("fastv", retention_ratio=0.5), "acts inside the language model"),
        (EarlyTom(policy="official", merge_layers=(0, 9)), "out of range"),
        (EarlyTom(merge_layers=(0, 9)), "out of range"),
    ],
)
def test_methods_that_a_stream_cannot_run(qa, method, message):
    with pytest.raises(ConfigError, match=message):
        Stream(qa, method)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("qwen2_5_vl", "M-RoPE"),
        ("qwen3_vl", "M-RoPE"),
        ("llava_video", "newline tokens stand in between"),
        ("internvl", "frames are images"),
        ("smolvlm", "frames are images"),
        ("video_llava", "laid out in another way"),
    ],
)
def test_other_families_say_why_not(kind, why):
    families = [*ALL_FAMILIES, *map(QwenFamily, CONFIG)]
    family = next(f for f in families if f.name.startswith(kind))
    with pytest.raises(UnsupportedModelError, match=why):
        Stream(family.model(), OFFICIAL)


def test_a_bare_model_finds_its_preprocessor(folder, qa):
    frames = drifting(5)
    expected = pushed(Stream(qa, OFFICIAL), frames).ask(QUESTION, max_new_tokens=3).text
    bare = Stream(VideoQA.load(folder, device="cpu").model, OFFICIAL)
    assert pushed(bare, frames).ask(QUESTION, max_new_tokens=3).text == expected
    given = Stream(qa.model, OFFICIAL, preprocessor=Preprocessor.from_pretrained(folder))
    assert pushed(given, frames).ask(QUESTION, max_new_tokens=3).text == expected


def test_the_question_must_come_behind_the_video(folder):
    qa = VideoQA.load(folder, device="cpu")
    own = Preprocessor.from_pretrained(folder, official=False)
    own.chat_template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'text' %}"
        "{{ c['text'] }} {% endif %}{% endfor %}<video> {% endfor %}<|im_start|> assistant "
    )
    stream = pushed(Stream(qa.model, OFFICIAL, preprocessor=own), drifting(2))
    with pytest.raises(UnsupportedModelError, match="question in front of the video"):
        stream.ask(QUESTION)


def test_hooks_of_others_inside_the_encoder(folder):
    qa = VideoQA.load(folder, device="cpu")
    layer = Stream(qa).adapter.layers[1]
    handle = layer.register_forward_pre_hook(lambda *args: None)
    with pytest.raises(
        UnsupportedModelError, match="has a hook or forward of its own; give window"
    ):
        Stream(qa, OFFICIAL)
    pushed(Stream(qa, OFFICIAL, window=2), drifting(3))
    handle.remove()
    Stream(qa, OFFICIAL)


def test_the_model_is_left_as_it_was(folder):
    qa = VideoQA.load(folder, device="cpu")
    qa.ask(drifting(2), QUESTION, max_new_tokens=1)  # transformers leaves traces at the first call
    before = [dict(m.__dict__) for m in qa.model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in qa.model.modules()]
    for window in (None, 3):
        stream = pushed(Stream(qa, OFFICIAL, window=window), drifting(9))
        stream.ask(QUESTION, max_new_tokens=2)
    for module, state in zip(qa.model.modules(), before, strict=True):
        assert module.__dict__.keys() == state.keys()
        assert all(module.__dict__[k] is v for k, v in state.items() if k not in ("training",))
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in qa.model.modules()]
    assert after == hooks
