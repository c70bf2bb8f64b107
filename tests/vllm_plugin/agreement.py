"""A method on one video, decided by vLLM's tower and by the transformers engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from earlytom.integrations.vllm.encoding import Encoded, Encoder
from earlytom.integrations.vllm.item import VideoItem
from earlytom.integrations.vllm.ranks import Ranks
from earlytom.integrations.vllm.settings import check_servable
from earlytom.method import Method
from earlytom.stages import Grid
from tests.vllm_plugin.reference import Reference


def in_vllm(engine: Any, method: Method, pixels: Tensor, frames: int, grid: Grid) -> Encoded:
    """Encode one video in the model of an engine of this process, by another method."""

    def run(model: Any) -> Encoded:
        adapter, layers = model._adapter()
        check_servable(method, layers, 2, None if adapter.packed else grid)
        item = VideoItem.plan(method, None, frames, grid, layers)
        encoder = Encoder(adapter, method, layers, model._encode_frames, Ranks(), lambda: False)
        before, model._encoder = model._encoder, encoder
        try:
            with torch.inference_mode():
                return encoder(pixels, item)
        finally:
            model._encoder = before

    return engine.llm.apply_model(run)[0]


def in_transformers(reference: Reference, method: Method, video: Any, tokens: int) -> Encoded:
    """Rows that are left of a video, and their places; ``tokens`` visual ones before."""
    with torch.no_grad(), method(reference.model):
        rows = reference.video_rows(video)[:tokens]
    kept = ~rows.isnan().any(1)
    return Encoded(rows[kept], kept.nonzero().squeeze(1))
