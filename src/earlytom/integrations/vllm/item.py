"""What a video of a request has agreed on before it is encoded: it travels with the pixels.

The number of tokens is computed once, where placeholders are counted. The worker takes it from
here, so the two cannot disagree.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from earlytom.integrations.vllm.settings import with_ratio
from earlytom.method import Method
from earlytom.ops.tensors import exact
from earlytom.stages import Grid

FIELD = "earlytom_video"  # name of the tensor among the inputs of an item


@dataclass(frozen=True)
class VideoItem:
    """One video.

    Attributes:
        ratio: retention ratio; 1: the video goes through vLLM's own code.
        tokens: visual tokens that enter the language model, newline tokens not counted.
        frames: frames (steps of the temporal grid) ``T``.
        grid: (height, width) of the tokens of a frame.
        seconds: seconds between two frames; rounded to float32, as the processor gives them.
    """

    ratio: float
    tokens: int
    frames: int
    grid: Grid
    seconds: float = 1.0

    @classmethod
    def plan(
        cls,
        method: Method | None,
        ratio: float | None,
        frames: int,
        grid: Grid,
        n_layers: int,
        seconds: float = 1.0,
    ) -> VideoItem:
        """Fix ratio and count of one video.

        Args:
            method: of the server, None if compression is off.
            ratio: of the request, None for the server's.
            frames: of the video.
            grid: of the tokens of a frame.
            n_layers: layers of the vision encoder.
            seconds: between two frames.

        Raises:
            ConfigError: the method cannot have this ratio.
            BudgetError: the video is too short for what the method keeps.
        """
        size = grid[0] * grid[1]
        if method is None or (method.retention_ratio if ratio is None else ratio) == 1:
            return cls(1, frames * size, frames, grid, seconds)
        method = method if ratio is None else with_ratio(method, ratio)
        method.fixed_merges(frames, size, n_layers)
        tokens = method.token_budget(frames, size)
        return cls(method.retention_ratio, tokens, frames, grid, seconds)

    @property
    def size(self) -> int:
        """Tokens of a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def whole(self) -> bool:
        """Whether nothing is compressed."""
        return self.ratio == 1

    # ------------------------------------------------------------------ as numbers
    def numbers(self) -> tuple[int, ...]:
        """Return the item as integers, nothing rounded."""
        share = exact(self.ratio)
        (bits,) = struct.unpack("<i", struct.pack("<f", self.seconds))
        shape = (self.tokens, self.frames, *self.grid)
        return (share.numerator, share.denominator, *shape, bits)

    @classmethod
    def of(cls, numbers: Sequence[int]) -> VideoItem:
        """Undo :meth:`numbers`."""
        above, below, tokens, frames, height, width, bits = (int(n) for n in numbers)
        (seconds,) = struct.unpack("<f", struct.pack("<i", bits))
        ratio = float(Fraction(above, below))
        return cls(ratio, tokens, frames, (height, width), seconds)


def to_tensor(items: Sequence[VideoItem]) -> Tensor:
    """Return ``[videos, 7]`` int64."""
    return torch.tensor([item.numbers() for item in items], dtype=torch.int64)


def from_tensor(values: Tensor) -> list[VideoItem]:
    """Undo :func:`to_tensor`; also takes the row of one video, or rows under another dimension."""
    return [VideoItem.of(row) for row in values.reshape(-1, 7).tolist()]
