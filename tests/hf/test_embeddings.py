"""Frames merged at the patch embeddings, in front of the first encoder layer."""

from __future__ import annotations

import pytest
import torch

import earlytom
from earlytom import EarlyTom
from earlytom.bench.flops import encoder_work
from earlytom.errors import ConfigError
from earlytom.models import find_adapter
from tests.families import FRAMES, PROMPTS, Family, forward

FAMILY = Family("llava_onevision")


def test_the_encoder_runs_on_the_frames_left_from_its_first_layer_on() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS["one_video"])
    adapter = find_adapter(model)
    seen = []
    handle = adapter.layers[0].register_forward_hook(lambda m, a, out: seen.append(a[0].shape[0]))
    with EarlyTom(merge_layers=(-1,), frames=(3,), retention_ratio=0.3)(model):
        forward(model, inputs)
        report = earlytom.last_report(model).videos[0]
    handle.remove()
    assert seen == [3]
    assert (report.merge_layers, report.frames_per_merge_point) == ((-1,), (3,))
    assert {w.rows for w in encoder_work(adapter, FRAMES, None).layers} == {FRAMES}
    method = EarlyTom(merge_layers=(-1,), frames=(3,), retention_ratio=0.3)
    assert {w.rows for w in encoder_work(adapter, FRAMES, method, report).layers} == {3}


def test_identical_frames_lose_nothing() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS["one_video"])
    pixels = inputs["pixel_values_videos"]
    still = pixels[:, :1].expand_as(pixels).contiguous()
    with torch.no_grad():
        whole = model.model.get_video_features(still)
        with EarlyTom(merge_layers=(-1,), frames=(1,), retention_ratio=1 / FRAMES)(model):
            merged = model.model.get_video_features(still)
    whole, merged = (x if isinstance(x, torch.Tensor) else x.pooler_output for x in (whole, merged))
    n = FAMILY.tokens_per_frame
    assert torch.allclose(merged[0, :n], whole[0, :n], atol=1e-5)
    assert merged[0, n : FRAMES * n].isnan().all()


def test_there_is_nothing_in_front_of_the_embeddings() -> None:
    adapter = find_adapter(FAMILY.model())
    with pytest.raises(ConfigError, match=r"uses layers -1\.\.5"):
        adapter.check_encoder_layers([6], first=-1)
    with pytest.raises(ConfigError, match=r"uses layers 0\.\.5"):
        adapter.check_encoder_layers([-1])
