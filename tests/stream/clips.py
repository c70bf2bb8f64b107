"""Frames of made-up videos, and what the offline engine makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import earlytom
from earlytom.method import Method
from earlytom.models import find_adapter
from earlytom.pipeline import VideoQA
from earlytom.preprocess import preprocess_video
from earlytom.stream import Stream

QUESTION = "what colour is the circle"
SIDE = 32


def drifting(n: int, seed: int = 0, cut: float = 0.12) -> Tensor:
    """``n`` frames ``[n, 32, 32, 3]`` that change slowly, at random speed, with cuts."""
    make = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        small = torch.rand(1, 3, 4, 4, generator=make)
        return torch.nn.functional.interpolate(small, size=SIDE, mode="bilinear")[0]

    picture, frames = noise(), []
    for _ in range(n):
        if torch.rand((), generator=make) < cut:
            picture = noise()
        speed = 0.5 * torch.rand((), generator=make) ** 2
        picture = (1 - speed) * picture + speed * noise()
        frames.append((picture * 255).to(torch.uint8).permute(1, 2, 0))
    return torch.stack(frames)


@dataclass
class Offline:
    """Tokens of a whole clip: their cells ``[k]`` and features ``[k, dim]``, and the report."""

    cells: list[int]
    features: Tensor
    report: earlytom.Report | None


@torch.no_grad()
def offline(qa: VideoQA, frames: Tensor, method: Method | None) -> Offline:
    """What the ordinary engine feeds the language model."""
    adapter = find_adapter(qa.model)
    config = adapter.inner.config

    def encode() -> Tensor:
        output = adapter.inner.get_video_features(
            preprocess_video(frames, qa.preprocessor.frame_config),
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            return_dict=True,
        )
        rows = adapter.read_features(output, [len(frames)])[0]
        return rows[: len(frames) * adapter.tokens_per_frame]

    if method is None:
        rows, report = encode(), None
    else:
        with method(qa.model):
            rows, report = encode(), earlytom.last_report(qa.model)
    kept = ~rows[:, 0].isnan()
    return Offline(kept.nonzero().flatten().tolist(), rows[kept], report)


def tokens(stream: Stream) -> tuple[list[int], Tensor]:
    """Cells and features of everything that a stream knows."""
    parts = [*stream.parts, *stream.open_parts()]
    cells = [c for p in parts for c in p.cells.tolist()]
    return cells, torch.cat([p.features for p in parts])


def pushed(stream: Stream, frames: Tensor, block: int = 1) -> Stream:
    """Push all frames in blocks."""
    for part in frames.split(block):
        stream.push(part)
    return stream


def assert_same_tokens(stream: Stream, expected: Offline, atol: float = 1e-5) -> None:
    cells, features = tokens(stream)
    assert cells == expected.cells
    torch.testing.assert_close(features, expected.features, atol=atol, rtol=1e-4)
