"""Compression must not pay with memory or host synchronisation: watched, not timed."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import earlytom
from earlytom import EarlyTom
from earlytom.hf import vision
from tests.families import FRAMES, PROMPTS, Family, forward
from tests.matrix import METHODS

FAMILY = Family("llava_onevision")
REAL = {k: m for k, m in METHODS.items() if k.startswith("earlytom")}


class _Shapes(TorchDispatchMode):
    """Collects the shape of every tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {tuple(t.shape) for t in tree_leaves(out) if isinstance(t, torch.Tensor)}
        return out


@pytest.mark.parametrize("name", REAL)
def test_no_attention_map_of_all_frames_is_stored(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, patches, limit = 4, 25, 20_000  # one frame's map of all heads is 10 kB
    chunked = functools.partial(vision.received_attention, max_bytes=limit)
    monkeypatch.setattr(vision, "received_attention", chunked)
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS["one_video"])
    earlytom.compress(model, REAL[name])
    with _Shapes() as shapes:
        forward(model, inputs)
    maps = [s for s in shapes.seen if len(s) >= 3 and s[-2:] == (patches, patches)]
    largest = max((torch.Size(s[:-2]).numel() for s in maps), default=0)
    assert largest * patches * patches * 4 <= limit < FRAMES * heads * patches * patches * 4


def test_received_attention_is_chunked_at_model_size() -> None:
    from earlytom.ops.received import received_attention

    q = torch.randn(4, 8, 729, 16)
    with _Shapes() as shapes:
        received_attention(q, q, 0.25, max_bytes=4 << 20)
    largest = max(torch.Size(s).numel() for s in shapes.seen)
    assert largest * 4 <= 4 << 20
    assert largest < 4 * 8 * 729 * 729


@pytest.mark.parametrize("name", REAL)
def test_at_most_one_host_copy_per_merge_point(name: str, host_copies: list[str]) -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS["one_video"])
    method = REAL[name]
    points = len(method.merge_points(6))
    pixels = inputs["pixel_values_videos"]
    with torch.no_grad():
        model.model.get_video_features(pixels)
        plain = len(host_copies)
        host_copies.clear()
        with method(model):
            host_copies.clear()
            model.model.get_video_features(pixels)
    # one per merge point, one for the segments behind the last one, one finiteness check
    regroup = 1 if method.score_layer(6) is not None and method.policy != "budget" else 0
    assert len(host_copies) - plain <= points + regroup + 1, host_copies


def test_layers_behind_a_merge_see_fewer_frames() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS["one_video"])
    seen: list[int] = []
    for layer in model.model.vision_tower.encoder.layers:
        layer.register_forward_hook(lambda m, a, out: seen.append(out.shape[0]))
    method = EarlyTom(retention_ratio=0.25, merge_layers=(1, 3), frames=(5, 3))
    with method(model):
        forward(model, inputs)
    assert seen == [FRAMES, FRAMES, 5, 5, 3, 3]
