"""Workload of models with packed vision towers: patches, grids and token kinds of Qwen-VL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from earlytom.bench.speed.workload import Workload
from earlytom.stages import Grid

SIDE = 448  # pixels of a square frame: 16 x 16 tokens
_PAIR = 2  # pictures of one step of the temporal grid


@dataclass(frozen=True)
class PackedWorkload(Workload):
    """All videos have the same even number of pictures, ``SIDE`` pixels high and wide."""

    @property
    def steps(self) -> int:
        """Two pictures each."""
        return self.frames // _PAIR

    @property
    def grid(self) -> Grid:
        """From the size of the pictures, not of the model."""
        config: Any = self.model.config.vision_config
        side = SIDE // config.patch_size // config.spatial_merge_size
        return side, side

    def pixels(self) -> Tensor:
        """Preprocess all videos: ``[patches of all, values]`` on the device."""
        config: Any = self.model.config.vision_config
        patch, merge, side = config.patch_size, config.spatial_merge_size, self.grid[0]
        x = super().pixels().reshape(-1, _PAIR, 3, side, merge, patch, side, merge, patch)
        x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return x.reshape(-1, 3 * _PAIR * patch**2)

    def inputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the arguments of ``generate``."""
        found = super().inputs(pixels)
        ids = found["input_ids"]
        merge = self.model.config.vision_config.spatial_merge_size
        shape = [self.steps, self.grid[0] * merge, self.grid[1] * merge]
        return {
            **found,
            "video_grid_thw": torch.tensor([shape] * len(self.raw), device=ids.device),
            "mm_token_type_ids": (ids == self.adapter.video_token_id).int() * 2,
        }
