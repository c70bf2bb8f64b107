"""Baseline: frames of lower resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from earlytom.method import Method, register_method
from earlytom.ops.lattice import coarser_grid, places
from earlytom.ops.tensors import exact, to_device


@register_method
@dataclass(frozen=True, kw_only=True)
class LowResolution(Method):
    """Frames are shrunk before the vision encoder, so that it runs on fewer patches as well.

    The token grid of a frame is the largest that the ratio allows, with tokens at most twice as
    wide as high (or the reverse) where possible: the budget is an upper bound that whole grids
    fill, known before the video is. Every token is the mean of 2x2 patches and stands in the cell
    nearest to its centre. Position embeddings are interpolated by the encoder itself. A ratio below
    one token a frame keeps the only token of evenly spaced frames.

    Args:
        retention_ratio: see :class:`Method`.
        positions: see :class:`Method`.

    Raises:
        ConfigError: a value out of range.
    """

    name: ClassVar[str] = "resize"
    token_count: ClassVar[str] = "known: at most the budget"

    def encoder_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        """Return the token grid that frames are shrunk for, None at full resolution."""
        most = math.floor(exact(self.retention_ratio) * grid[0] * grid[1])
        coarse = coarser_grid(grid, max(1, most))
        return None if coarse == grid else coarse

    def final_patches(self, size: Tensor, budget: int) -> Tensor | None:
        """Return evenly spaced frames if there are more frames than tokens."""
        if size.numel() <= budget:
            return None
        return to_device(places(size.numel(), budget), size.device)
