"""LLaVA-Video's own pooling and newline layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import earlytom
from earlytom.models import find_adapter, use_llava_video_layout
from tests.families import FRAMES, PROMPTS, Family, forward
from tests.toys import TOYS

PLAIN, VIDEO = Family("llava_onevision"), Family("llava_video", FRAMES, 4, FRAMES * 2)


def test_features_are_averages_with_a_newline_behind_every_row() -> None:
    model = VIDEO.model()
    pixels = VIDEO.inputs(PROMPTS["one_video"])["pixel_values_videos"]
    inner, adapter = model.model, find_adapter(model)
    with torch.no_grad():
        hidden = inner.vision_tower(pixels[0], output_hidden_states=True).hidden_states[-1]
        grid = inner.multi_modal_projector(hidden).unflatten(1, (5, 5))[:, :4, :4]
        expected = grid[:, ::2, ::2] + grid[:, 1::2, ::2] + grid[:, ::2, 1::2] + grid[:, 1::2, 1::2]
        output = inner.get_video_features(pixels)
        rows = adapter.read_features(output, [FRAMES])[0]
    tokens = adapter.take_tokens(rows, FRAMES)
    torch.testing.assert_close(tokens, expected.flatten(1, 2) / 4)
    for row in range(2 * FRAMES - 1):
        assert torch.equal(rows[3 * row + 2], inner.image_newline)


def test_compressed_frames_keep_their_last_newline() -> None:
    model = VIDEO.model()
    inputs = VIDEO.inputs(PROMPTS["one_video"])
    with TOYS["merge_select"](model):  # 8 -> 4 -> 2 frames, 4 of 32 tokens
        forward(model, inputs)
    report = earlytom.last_report(model)
    assert report is not None
    frames = {f for f, _, _ in report.videos[0].provenance()} | {FRAMES - 1}
    before, after = report.prompt_columns
    assert before - after == (32 - report.tokens_out) + (2 * FRAMES - len(frames))


def test_layout_can_be_undone() -> None:
    model = PLAIN.model()
    inputs = PLAIN.inputs(PROMPTS["one_video"])
    before = forward(model, inputs).logits
    use_llava_video_layout(model)
    use_llava_video_layout(model, enable=False)
    assert torch.equal(forward(model, inputs).logits, before)


def test_layout_cannot_change_under_a_method() -> None:
    model: nn.Module = PLAIN.model()
    earlytom.compress(model, TOYS["select"])
    with pytest.raises(earlytom.UnsupportedModelError, match="restore"):
        use_llava_video_layout(model)
