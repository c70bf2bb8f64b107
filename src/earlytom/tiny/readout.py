"""Throw-away linear read-outs of visual tokens and words, for training only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from earlytom.tiny.architecture import TEXT_WIDTH


class ReadOut(nn.Module):
    """Norm and one linear layer, split by target name.

    Args:
        sizes: outputs per target.
        norm: over the last axis.
        frames: frames that share a token; every one of them gets outputs of its own.
    """

    def __init__(self, sizes: dict[str, int], norm: nn.Module, frames: int = 1) -> None:
        super().__init__()
        self.sizes, self.frames = sizes, frames
        self.norm = norm
        self.out = nn.Linear(TEXT_WIDTH, frames * sum(sizes.values()))

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """One float32 tensor per target: ``[..., D]`` to ``[..., size]``.

        With several frames per token ``[..., steps, 49, D]`` becomes ``[..., frames, 49, size]``.
        """
        out = self.out(self.norm(hidden)).float()
        if self.frames > 1:
            out = out.unflatten(-1, (self.frames, -1)).transpose(-3, -2).flatten(-4, -3)
        parts: Sequence[Tensor] = out.split(list(self.sizes.values()), -1)
        return dict(zip(self.sizes, parts, strict=True))
