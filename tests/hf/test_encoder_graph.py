"""The encoder as a pure function: no host reads, no hooks, CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import earlytom
from earlytom.hf.encoder_graph import EncoderGraph, without_hooks
from earlytom.models import find_adapter
from earlytom.ops.device_plan import FixedMerge
from tests.compiled import BUDGET, FAMILY, SMALL, same_reports, small_model
from tests.families import (
    FRAMES,
    PROMPTS,
    build_llava_onevision,
    forward,
)
from tests.ops.test_device_plan import WAITS, Devices

pytestmark = pytest.mark.usefixtures("fresh_compiler")


# ---------------------------------------------------------------------- the pure function
MERGES = {1: FixedMerge(5, 0.1, "average"), 3: FixedMerge(2, fuse="average")}


def test_nothing_in_the_graph_waits_for_the_host() -> None:
    model = FAMILY.model().to("meta")
    graph = EncoderGraph(find_adapter(model), MERGES, FRAMES)
    with torch.no_grad(), Devices() as seen:
        hidden, decisions, signals = graph(torch.empty(2 * FRAMES, 3, 70, 70, device="meta"))
    assert hidden.shape == (4, 25, 64)
    assert decisions.shape == (2, 1 + 5 + 1 + 2)
    assert signals == ()
    assert seen.devices == {"meta"}
    assert not seen.names & set(WAITS), seen.names & set(WAITS)


def test_one_host_read_per_call(host_copies: list[str]) -> None:
    model = small_model()
    pixels = FAMILY.inputs(PROMPTS["two_videos"])["pixel_values_videos"]
    earlytom.compile(model, SMALL, FRAMES, backend="eager")
    with torch.no_grad():
        find_adapter(model).inner.get_video_features(pixels)  # type: ignore[operator]
        host_copies.clear()
        find_adapter(model).inner.get_video_features(pixels)  # type: ignore[operator]
    # the plans of all points and videos, and one finiteness check a video in front of selection
    assert sorted(host_copies) == ["__bool__", "__bool__", "tolist"]


def test_a_view_shares_weights_and_drops_hooks() -> None:
    inner = nn.Linear(3, 3)
    module = nn.Sequential(inner, nn.Dropout(0.5)).train()
    calls: list[nn.Module] = []
    inner.register_forward_hook(lambda m, args, out: calls.append(m))
    view = without_hooks(module)
    x = torch.ones(1, 3)
    assert torch.equal(view(x), torch.nn.functional.linear(x, inner.weight, inner.bias))
    assert calls == []
    assert view[0].weight is inner.weight
    assert module.training
    assert len(inner._forward_hooks) == 1


# ---------------------------------------------------------------------- CUDA graphs
@pytest.mark.gpu
def test_the_pure_function_replays_in_a_cuda_graph() -> None:
    model = build_llava_onevision().cuda()
    graph = EncoderGraph(find_adapter(model), MERGES, FRAMES, score_layer=2)
    videos = [
        FAMILY.inputs(PROMPTS["two_videos"], seed=s)["pixel_values_videos"].flatten(0, 1).cuda()
        for s in (1, 2, 3)
    ]
    with torch.no_grad():
        expected = [[x.clone() for x in (h, d, *s)] for h, d, s in map(graph, videos)]
        fixed = videos[0].clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            graph(fixed)
        torch.cuda.current_stream().wait_stream(side)
        capture = torch.cuda.CUDAGraph()
        with torch.cuda.graph(capture):
            hidden, decisions, signals = graph(fixed)
    for pixels, wanted in zip(videos, expected, strict=True):
        fixed.copy_(pixels)
        capture.replay()
        assert torch.equal(decisions, wanted[1])
        torch.testing.assert_close((hidden, *signals), (wanted[0], *wanted[2:]))


@pytest.mark.gpu
def test_reduce_overhead_equals_the_engine() -> None:
    model = build_llava_onevision().cuda()
    earlytom.compile(model, BUDGET, FRAMES, mode="reduce-overhead")
    first: list[Tensor] = []
    for seed in (1, 2, 3, 4):  # warm-up, recording, replays
        inputs = FAMILY.inputs(PROMPTS["two_videos"], seed=seed)
        inputs = {k: v.cuda() for k, v in inputs.items()}
        found = forward(model, inputs).logits
        first.append(found)
        report = earlytom.last_report(model)
        with BUDGET(model):
            expected = forward(model, inputs).logits
            same_reports(model, report)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert not torch.equal(first[2], first[3])
