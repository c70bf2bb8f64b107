from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import earlytom
from earlytom import load_method
from earlytom.methods import LowResolution
from tests.families import FRAMES, Family, forward


def features(model: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        out = model.model.get_video_features(pixels)
    rows: Tensor = out if isinstance(out, Tensor) else out.pooler_output
    return rows


def video(videos: int = 1) -> Tensor:
    pixels: Tensor = Family("").inputs([["t2", *["v"] * videos]])["pixel_values_videos"]
    return pixels


@pytest.mark.parametrize(
    ("ratio", "grid", "tokens"),
    [(0.9, (2, 3), 48), (0.5, (2, 2), 32), (0.25, (1, 2), 16), (0.12, (1, 1), 8), (0.05, None, 4)],
)
def test_whole_grids_fill_the_budget(
    ratio: float, grid: tuple[int, int] | None, tokens: int
) -> None:
    family = Family("llava_onevision")
    model = family.model()
    method = LowResolution(retention_ratio=ratio)
    assert method.encoder_grid((3, 3)) == (grid or (1, 1))
    with method(model):
        features(model, video(2))
        report = earlytom.last_report(model)
    assert report is not None
    for v in report.videos:
        assert v.tokens_out == tokens <= method.token_budget(FRAMES, 9)
    if grid is None:  # 4 tokens for 8 frames
        assert [f for f, _, _ in report.videos[0].provenance()] == [1, 3, 5, 7]


def test_tokens_are_those_of_a_small_frame() -> None:
    model: Any = Family("llava_onevision").model()
    pixels = video()
    with LowResolution(retention_ratio=0.5)(model):
        rows = features(model, pixels)[0, : FRAMES * 9].view(FRAMES, 9, -1)
    inner = model.model
    small = nn.functional.interpolate(pixels[0], size=(56, 56), mode="bilinear", antialias=True)
    with torch.no_grad():
        out = inner.vision_tower(
            small, interpolate_pos_encoding=True, output_hidden_states=True, return_dict=True
        )
        projected = inner.multi_modal_projector(out.hidden_states[-1]).unflatten(1, (2, 2, 2, 2))
    expected = projected.mean((2, 4)).flatten(1, 2)
    # centres 1/4 and 3/4 of a frame lie nearest to the outer cells of 3 x 3
    there = [0, 2, 6, 8]
    torch.testing.assert_close(rows[:, there], expected, atol=2e-5, rtol=1e-4)
    assert rows[:, [1, 3, 4, 5, 7]].isnan().all()


def test_full_resolution_is_untouched() -> None:
    family = Family("llava_onevision")
    model, inputs = family.model(), family.inputs([["t2", "v"]])
    before = forward(model, inputs).logits
    with LowResolution(retention_ratio=1.0)(model):
        assert torch.equal(forward(model, inputs).logits, before)


def test_encoder_computes_less() -> None:
    model, pixels = Family("llava_onevision").model(), video()

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            features(model, pixels)
        return counter.get_total_flops()

    full = flops()
    with load_method("resize", retention_ratio=0.25)(model):
        assert flops() < 0.4 * full
