"""Qwen3-VL: packed tower with features of middle layers (deepstack), M-RoPE, written timestamps.

The prompt names the time of every frame in text. That text stays, also in front of a frame whose
tokens are all gone; a merged frame stands behind the timestamp of its slot.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from earlytom.models.base import find_submodule
from earlytom.models.packed import PackedTower


class Qwen3VL(PackedTower):
    """``Qwen3VLModel`` of transformers."""

    model_types = ("qwen3_vl",)
    checkpoints = ("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct")

    @property
    def deep_layers(self) -> tuple[int, ...]:
        """``deepstack_visual_indexes``."""
        config: Any = self.inner.config.vision_config  # type: ignore[union-attr]
        return tuple(int(i) for i in config.deepstack_visual_indexes)

    @property
    def deep_projectors(self) -> tuple[nn.Module, ...]:
        """One merger per deepstack layer."""
        mergers = find_submodule(self.tower, "deepstack_merger_list")
        assert isinstance(mergers, nn.ModuleList)
        return tuple(mergers)

    def write_deep(self, output: Any, layers: list[list[Tensor]]) -> Any:
        """``deepstack_features`` holds per layer one ``[frames * tokens, dim]`` per video.

        Older transformers hold the rows of all videos in one tensor.
        """
        whole = isinstance(output.deepstack_features[0], Tensor)
        output.deepstack_features = [
            torch.cat(videos) if whole else tuple(videos) for videos in layers
        ]
        return output
