"""Qwen2.5-VL: packed tower with window attention, M-RoPE."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from earlytom.models.packed import PackedTower
from earlytom.stages import Grid


class Qwen25VL(PackedTower):
    """``Qwen2_5_VLModel`` of transformers: most layers attend inside windows of a frame.

    Inside the encoder the tokens of a frame lie window by window, the same way in every frame; the
    model undoes that behind its merger.
    """

    model_types = ("qwen2_5_vl",)
    checkpoints = ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct")

    def segments(self, grid: Grid, layer: int) -> list[int]:
        """Whole frames in ``fullatt_block_indexes``, else windows."""
        if layer in self._vision.fullatt_block_indexes:
            return super().segments(grid, layer)
        return self._windows(grid)[1]

    def token_order(self, grid: Grid) -> Tensor:
        """Undo the order by windows."""
        return self._windows(grid)[0].argsort()

    @property
    def _vision(self) -> Any:
        return self.inner.config.vision_config  # type: ignore[union-attr]

    def _windows(self, grid: Grid) -> tuple[Tensor, list[int]]:
        vision = self._vision
        return _windows(grid, self.merge, int(vision.window_size), self.patch_size)


@lru_cache(maxsize=64)
def _windows(grid: Grid, merge: int, window: int, patch: int) -> tuple[Tensor, list[int]]:
    """Return the token at every place of a frame, and the patches of every window."""
    from transformers.vision_utils import get_vision_window_index

    frame = torch.tensor([[1, grid[0] * merge, grid[1] * merge]])
    index, ends = get_vision_window_index(frame, merge, window, patch)
    return index, ends.diff().tolist()
