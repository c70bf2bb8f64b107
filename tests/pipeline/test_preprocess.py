"""The inputs built without torchvision equal the official processor's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from earlytom.errors import (
    ConfigError,
    EarlyTomError,
    UnsupportedModelError,
    VideoError,
)
from earlytom.preprocess import FrameConfig, Preprocessor, preprocess_video
from earlytom.video import Video

# Written by LlavaOnevisionVideoProcessor (transformers 5.23.0, torchvision 0.28.0, CPU).
REFERENCES = sorted((Path(__file__).parents[1] / "data").glob("preprocess_*.npz"))


def frames(t=4, h=40, w=52, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (t, h, w, 3), dtype=torch.uint8, generator=g)


@pytest.fixture(scope="module")
def own(folder):
    return Preprocessor.from_pretrained(folder, official=False)


@pytest.mark.parametrize("path", REFERENCES, ids=lambda p: p.stem)
def test_equals_stored_official_values(path):
    data = np.load(path)
    config = FrameConfig.from_dict(json.loads(str(data["config"])))
    got = preprocess_video(torch.from_numpy(data["frames"]), config)
    expected = torch.from_numpy(data["expected"])
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


def test_there_are_references():
    assert len(REFERENCES) == 9


def test_placeholders_and_left_padding(own):
    tokenizer = own.tokenizer
    video = tokenizer.convert_tokens_to_ids("<video>")
    out = own([[frames(), frames()], [frames()]], ["what", "which moves first last red"])
    assert out["pixel_values_videos"].shape == (3, 4, 3, 28, 28)
    assert (out["input_ids"] == video).sum(1).tolist() == [2 * 17, 17]
    assert out["attention_mask"][0].all()
    n_pad = int((out["attention_mask"][1] == 0).sum())
    assert n_pad > 0
    assert (out["input_ids"][1, :n_pad] == tokenizer.pad_token_id).all()
    assert (out["attention_mask"][1, n_pad:] == 1).all()
    alone = own(frames(), "which moves first last red")
    assert torch.equal(out["input_ids"][1, n_pad:], alone["input_ids"][0])


def test_prompt_and_dtype(own):
    text = own.prompt("what moves", 2)
    assert text == "<|im_start|> user <video> <video> what moves <|im_end|> <|im_start|> assistant "
    out = own(Video.from_frames(frames()), "what", dtype=torch.bfloat16)
    assert out["pixel_values_videos"].dtype == torch.bfloat16
    assert out["input_ids"].dtype == torch.int64
    assert own.decode(torch.tensor(own.tokenizer.encode("red circle <|im_end|>"))) == "red circle"


def test_unequal_lengths_are_named(own):
    with pytest.raises(VideoError, match="same number of frames, got 3, 4"):
        own([frames(3), frames(4)], ["what", "which"])


def test_bad_calls(own):
    with pytest.raises(VideoError, match="got 2 questions but videos for 1"):
        own([frames()], ["what", "which"])
    with pytest.raises(ConfigError, match="placeholder '<video>'"):
        own(frames(), "what is <video> here")
    with pytest.raises(ConfigError, match="images need the official processor"):
        own(frames(), "what", images=[frames(1)[0]])
    with pytest.raises(VideoError, match="uint8 tensor"):
        own(frames().float(), "what")


@pytest.mark.parametrize(
    "data",
    [{"do_pad": True}, {"do_center_crop": True}, {"resample": 1}, {"size": {"longest_edge": 9}},
     {"size": {"height": 0, "width": 3}}, {"size": "big"}, {"image_mean": [0.5]}],
)  # fmt: skip
def test_settings_that_are_not_reproduced(data):
    with pytest.raises(ConfigError):
        FrameConfig.from_dict(data)


def test_sizes():
    assert FrameConfig.from_dict({}).output_size(10, 20) == (384, 384)
    assert FrameConfig.from_dict({"size": 30}).output_size(10, 20) == (30, 60)
    assert FrameConfig.from_dict({"size": 30}).output_size(20, 10) == (60, 30)
    square = FrameConfig.from_dict({"size": 30, "default_to_square": True})
    assert square.output_size(20, 10) == (30, 30)
    assert FrameConfig(do_resize=False).output_size(7, 9) == (7, 9)


def test_template_files(folder, tmp_path):
    for name, content in (
        ("chat_template.json", json.dumps({"chat_template": "{{ 'A<video>' }}"})),
        ("chat_template.jinja", "{{ 'B<video>' }}"),
    ):
        target = tmp_path / name.replace(".", "_")
        target.mkdir()
        for file in folder.iterdir():
            if not file.name.startswith(("chat_template", "model")):
                (target / file.name).write_bytes(file.read_bytes())
        (target / name).write_text(content)
        got = Preprocessor.from_pretrained(target, official=False).prompt("what")
        assert got == ("A<video>" if "json" in name else "B<video>")
    (target / "chat_template.jinja").write_text("no placeholder")
    with pytest.raises(UnsupportedModelError, match="0 video placeholders"):
        Preprocessor.from_pretrained(target, official=False).prompt("what")
    (target / "chat_template.jinja").unlink()
    with pytest.raises(EarlyTomError, match="chat template"):
        Preprocessor.from_pretrained(target, official=False).prompt("what")


def test_other_families_need_their_processor(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "internvl"}')
    with pytest.raises(UnsupportedModelError, match=r"official processor.*qwen2_5_vl"):
        Preprocessor.from_pretrained(tmp_path, official=False)
