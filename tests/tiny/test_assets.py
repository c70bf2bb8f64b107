"""Tokenizer, chat template, processor files, published folders."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from earlytom.hf.context import share_of_video
from earlytom.tiny import weights_path
from earlytom.tiny.architecture import architecture, build_model
from earlytom.tiny.assets import build_tokenizer
from earlytom.tiny.clips import plan_clip
from earlytom.tiny.config import TrainConfig
from earlytom.tiny.publish import publish
from earlytom.tiny.vocabulary import ASSISTANT_ID, EOS_ID, USER_ID, VIDEO_ID, encode, words
from earlytom.tiny.world import CELLS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published")
    publish(build_model(3), out, {"seed": 3})
    return out


def test_tokenizer_agrees_with_the_training_encoding() -> None:
    tokenizer = build_tokenizer(architecture())
    assert tokenizer.convert_tokens_to_ids(list(words())) == list(range(len(words())))
    for seed in range(20):
        for q in plan_clip(seed, 8)[1]:
            assert tokenizer(q.question).input_ids == encode(q.question)
            assert tokenizer.decode(encode(q.answer)) == q.answer
    assert tokenizer("What COLOR is the Circle??").input_ids[-2:] == encode("? ?")


def test_chat_template_renders_the_training_prompt(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    content = [{"type": "video"}, {"type": "text", "text": "How many shots are there?"}]
    chat = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    expanded = text.replace("<video>", "<video>" * (4 * CELLS + 1))
    ids = tokenizer(expanded).input_ids
    question = encode("how many shots are there?")
    assert ids == [USER_ID, *[VIDEO_ID] * (4 * CELLS + 1), *question, ASSISTANT_ID]
    chat.append({"role": "assistant", "content": "4"})
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert tokenizer(whole).input_ids[-2:] == [*encode("4"), EOS_ID]
    assert tokenizer.decode(tokenizer(whole).input_ids, skip_special_tokens=True).endswith("4")


def test_published_folder_loads_and_keeps_the_weights(folder: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(model).__name__ == "LlavaOnevisionForConditionalGeneration"
    assert model.dtype == torch.bfloat16
    want = build_model(3).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, want[name].bfloat16()), name
    assert model.generation_config.eos_token_id == EOS_ID
    assert not model.generation_config.do_sample
    assert (folder / "model.safetensors").stat().st_size < 18e6
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_processor_files_match_the_model(folder: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    grid = config.vision_config.image_size // config.vision_config.patch_size
    files = {
        name: json.loads((folder / name).read_text()) for name in architecture().processor_files()
    }
    assert files["processor_config.json"]["num_image_tokens"] == grid**2
    assert files["processor_config.json"]["vision_feature_select_strategy"] == "full"
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        assert files[name]["size"] == {"height": 112, "width": 112}
        assert files[name]["image_mean"] == [0.5] * 3


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
def test_processor_loads(folder: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    video = torch.zeros(4, 3, 112, 112, dtype=torch.uint8)
    out = processor(text="<user> <video> which digit is shown? <assistant>", videos=[video])
    assert out["pixel_values_videos"][0].shape[0] == 4


def test_the_context_is_what_the_model_was_trained_on() -> None:
    longest = 2 * TrainConfig(out=Path()).phases[-1].frames  # one batch in a few is twice as long
    shipped = json.loads((weights_path() / "config.json").read_text("utf-8"))["text_config"]
    for text in (shipped, build_model(3).config.text_config.to_dict()):
        assert share_of_video(text["max_position_embeddings"]) == longest * CELLS
