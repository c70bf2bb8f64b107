"""The shipped weights: they load, answer, and stop."""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager
from typing import Any

import pytest
from typer.testing import CliRunner

from earlytom.cli.tiny import app
from earlytom.tiny import evaluate, make_clip, weights_path
from earlytom.tiny.architecture import normalise
from earlytom.tiny.questions import TYPES
from earlytom.tiny.vocabulary import VIDEO

pytestmark = [
    pytest.mark.skipif(
        not (weights_path() / "model.safetensors").is_file(), reason="weights are not built"
    ),
    pytest.mark.usefixtures("quick_guesser"),
]


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(weights_path()).eval()


def test_size_and_files() -> None:
    names = {p.name for p in weights_path().iterdir()}
    assert {"README.md", "learning_curve.json", "training.json", "chat_template.jinja"} <= names
    assert (weights_path() / "model.safetensors").stat().st_size < 18e6


def test_accuracy_on_a_small_held_out_sample(model: Any) -> None:
    result = evaluate(model, questions=48, seed=77)
    assert result.questions == 48
    assert set(result.accuracy_by_type) == set(TYPES)
    assert result.accuracy > 0.85
    assert result.wrong_video_accuracy < 0.5
    json.dumps(result.to_dict())


def test_generate_answers_and_stops(model: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights_path())
    clip = make_clip(3)
    right = 0
    chosen = clip.questions[:6]
    for question in chosen:
        content = [{"type": "video"}, {"type": "text", "text": question.question}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = tokenizer(text.replace(VIDEO, VIDEO * (16 * 49 + 1)), return_tensors="pt")
        out = model.generate(
            **inputs, pixel_values_videos=normalise(clip.frames, model.dtype)[None]
        )
        answer = out[0, inputs.input_ids.shape[1] :].tolist()
        assert len(answer) == 2
        assert answer[-1] == tokenizer.eos_token_id
        right += tokenizer.decode(answer[:1]) == question.answer
    assert right >= len(chosen) - 1


def test_whole_prompt_agrees_with_the_shared_prefix(model: Any) -> None:
    exact = copy.deepcopy(model).float()
    shared = evaluate(exact, questions=12, seed=5, frames=4, control=0)
    whole = evaluate(exact, questions=12, seed=5, frames=4, control=0, whole_prompt=True)
    assert shared.accuracy_by_type == whole.accuracy_by_type


def test_context_is_entered_around_the_forward_passes(model: Any) -> None:
    events = []

    @contextmanager
    def context() -> Any:
        handle = model.register_forward_pre_hook(lambda *_: events.append("forward"))
        yield
        handle.remove()

    evaluate(model, questions=12, seed=5, frames=4, control=0, context=context)
    assert events


def test_eval_command() -> None:
    arguments = ["eval", "--questions", "12", "--frames", "4", "--json", "--threads", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["questions"] >= 12
    assert {"accuracy", "accuracy_by_type", "blind_accuracy_by_type"} <= data.keys()
    assert "wrong_video_accuracy" in data
    bad = CliRunner().invoke(app, ["eval", "--model", "/nowhere"])
    assert bad.exit_code == 1
