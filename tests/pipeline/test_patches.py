"""Qwen-VL inputs built without torchvision equal the official processors'."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from earlytom import EarlyTom
from earlytom.cli import app
from earlytom.errors import ConfigError, UnsupportedModelError, VideoError
from earlytom.hf.api import fitted
from earlytom.methods import Afterimage
from earlytom.pipeline import VideoQA
from earlytom.preprocess import PatchConfig, Preprocessor, patchify_video
from earlytom.video import Video, load_video
from tests.families import VIDEO

# Written by the official video processors (transformers 5.19.0, torchvision 0.28.0).
REFERENCES = sorted((Path(__file__).parents[1] / "data").glob("patches_*.npz"))


def frames(t: int, h: int = 60, w: int = 90, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (t, h, w, 3), dtype=torch.uint8, generator=g)


@pytest.mark.parametrize("path", REFERENCES, ids=lambda p: p.stem)
def test_equals_stored_official_values(path: Path) -> None:
    data = np.load(path)
    per_video = str(data["kind"]) == "qwen3_vl"
    config = PatchConfig.from_dict(json.loads(str(data["config"])), per_video=per_video)
    got = patchify_video(torch.from_numpy(data["frames"]), config)
    assert got.grid == tuple(data["grid"])
    assert torch.equal(got.values, torch.from_numpy(data["values"]))


def test_there_are_references() -> None:
    assert len(REFERENCES) == 3


@settings(max_examples=60, deadline=None)
@given(
    t=st.integers(1, 9),
    h=st.integers(8, 400),
    w=st.integers(8, 400),
    per_video=st.booleans(),
)
def test_sizes_hold_whole_tokens_within_the_limits(t: int, h: int, w: int, per_video: bool) -> None:
    limits = {"min_pixels": 56 * 56 * (t if per_video else 1)}
    limits["max_pixels"] = 40 * limits["min_pixels"]
    config = PatchConfig.from_dict(limits, per_video=per_video)
    factor = config.patch_size * config.merge_size
    height, width = config.output_size(t, h, w)
    assert height % factor == width % factor == 0
    count = max(2, round(t / 2) * 2) if per_video else 1
    if min(height, width) > factor:
        assert count * height * width <= 2 * limits["max_pixels"]
        assert 2 * count * height * width >= limits["min_pixels"]


def test_a_single_frame_is_not_shrunk() -> None:
    limits = {"min_pixels": 4096, "max_pixels": 1 << 24, "patch_size": 16}
    config = PatchConfig.from_dict(limits, per_video=True)
    assert config.output_size(1, 1088, 1920) == config.output_size(2, 1088, 1920) == (1088, 1920)


def test_one_frame_is_repeated_until_its_patch_is_full() -> None:
    x = frames(3)
    odd, even = patchify_video(x), patchify_video(torch.cat([x, x[-1:]]))
    assert odd.grid == even.grid
    assert odd.grid[0] == 2
    assert torch.equal(odd.values, even.values)
    assert torch.equal(patchify_video(x, dtype=torch.bfloat16).values, odd.values.bfloat16())


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"patch_size": 0}, "patch_size must be an integer >= 1"),
        ({"min_pixels": 9, "max_pixels": 4}, "max_pixels must be an integer >= min_pixels"),
        ({"cap_pixels_per_frame": True}, "cap_pixels_per_frame is only supported"),
        ({"do_center_crop": True}, "do_center_crop is only supported"),
    ],
)
def test_bad_settings(bad: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        PatchConfig.from_dict(bad)


def test_frames_that_cannot_be_cut() -> None:
    with pytest.raises(VideoError, match="at most 200 times"):
        patchify_video(frames(2, 3, 700))
    with pytest.raises(VideoError, match="divisible by 28"):
        patchify_video(frames(2, 30, 28), PatchConfig.from_dict({"do_resize": False}))
    config = PatchConfig.from_dict({"do_resize": False})
    assert patchify_video(frames(2, 56, 28), config).grid == (1, 4, 2)


def test_prompts(qwen: Path) -> None:
    own = Preprocessor.from_pretrained(qwen, official=False)
    a = Video.from_frames(frames(5), fps=4.0)
    b = Video.from_frames(frames(4, 90, 40, seed=1), fps=1.0)
    out = own([[a, b], [b]], ["what?", "which one is it?"])
    grids = out["video_grid_thw"]
    assert grids[:, 0].tolist() == [3, 2, 2]
    tokens = (grids.prod(1) // 4).tolist()
    video = out["input_ids"] == VIDEO
    assert video.sum(1).tolist() == [tokens[0] + tokens[1], tokens[2]]
    assert torch.equal(out["mm_token_type_ids"], 2 * video)
    assert len(out["pixel_values_videos"]) == int(grids.prod(1).sum())
    text = own.tokenizer.decode(out["input_ids"][0])
    if own.model_type == "qwen3_vl":
        # steps of two frames at 0, 0.25 | 0.5, 0.75 | 1, 1 and 0, 1 | 2, 3 seconds
        stamps = re.findall(r"<(\d\.\d)seconds>", text.replace(" ", ""))
        assert stamps == ["0.1", "0.6", "1.0", "0.5", "2.5"]
        assert text.count("<|vision_start|>") == 2 + 5
    else:
        assert " seconds>" not in text
        assert text.count("<|vision_start|>") == 2
    seconds = out.get("second_per_grid_ts")
    assert (seconds is not None) == (own.model_type == "qwen2_5_vl")
    if seconds is not None:
        assert seconds.tolist() == [0.5, 2.0, 2.0]
    alone = own(b, "which one is it?")
    n = alone["input_ids"].shape[1]
    assert torch.equal(out["input_ids"][1, -n:], alone["input_ids"][0])
    with pytest.raises(UnsupportedModelError, match="takes all frames at once"):
        own.pixels([])


def test_seconds_stay_exact_in_half_precision(qwen: Path) -> None:
    """Time positions are computed from them; bfloat16 would make 0.999 s a whole second."""
    own = Preprocessor.from_pretrained(qwen, official=False)
    video = Video.from_frames(frames(4), fps=2 / 0.999)
    out = own(video, "what?", dtype=torch.bfloat16)
    assert out["pixel_values_videos"].dtype == torch.bfloat16
    seconds = out.get("second_per_grid_ts")
    assert (seconds is not None) == (own.model_type == "qwen2_5_vl")
    if seconds is not None:
        assert seconds.item() == pytest.approx(0.999, abs=1e-6)


@pytest.mark.parametrize("command", ["ask", "inspect"])
def test_the_default_method_suits_packed_towers(qwen: Path, clip: Path, command: str) -> None:
    words = [command, str(clip), "what is it?", "--model", str(qwen), "--frames", "8", "--json"]
    result = CliRunner().invoke(app, [*words, "--max-new-tokens", "2", "--retention-ratio", "0.5"])
    assert result.exit_code == 0, result.output
    note = "note: this encoder cannot reuse patches, afterimage computes all of them\n"
    assert note in result.stderr
    json.loads(result.stdout)
    qa = VideoQA.load(qwen, device="cpu")
    with pytest.raises(
        UnsupportedModelError, match=r"not possible in .* \(set encoder_budget to 1\)"
    ):
        qa.ask(clip, "what is it?", Afterimage(), frames=8)
    assert fitted(EarlyTom(), qa.model) == EarlyTom()
    assert fitted(Afterimage(), qa.model) == Afterimage(encoder_budget=1.0)


def test_a_file_is_answered(qwen: Path, clip: Path) -> None:
    qa = VideoQA.load(qwen, device="cpu")
    full = qa.ask(clip, "what is it?", frames=8, max_new_tokens=3)
    less = qa.ask(clip, "what is it?", EarlyTom(retention_ratio=0.5), frames=8, max_new_tokens=3)
    assert full.frames_in == 4  # steps of two frames
    assert full.tokens_in == full.tokens_out == less.tokens_in
    assert less.tokens_out == -(-full.tokens_in // 2)
    assert less.prompt_out == full.prompt_out - full.tokens_in + less.tokens_out
    if qa.preprocessor.official is None:
        video = load_video(clip, 8)
        seconds = qa.preprocessor(video, "what?").get("second_per_grid_ts")
        if seconds is not None:
            assert seconds.item() == pytest.approx(2 * video.duration / 8, rel=1e-3)
