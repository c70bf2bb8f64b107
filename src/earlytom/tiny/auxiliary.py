"""Throw-away heads that tell the language model's hidden states what to know.

Without them, motion, relations, successors and shot counting sit on long plateaus.  They are
plain linear read-outs, used in training only; nothing of them is in the shipped weights.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from earlytom.tiny.architecture import TEXT_WIDTH
from earlytom.tiny.packing import IGNORE
from earlytom.tiny.world import COLORS, SHAPES

VIDEO_CLASSES = {
    "cut": 2,
    "segment": 4,
    "objects": 5,
    "shape": len(SHAPES) + 1,
    "color": len(COLORS) + 1,
    "first_color": len(COLORS) + 1,
    "motion": 5,
}
VIDEO_VALUES = {"travel": 2, "time": 1}
VIDEO_FLAGS = {"shapes_now": len(SHAPES), "shapes_before": len(SHAPES)}
NAMED_CLASSES = {
    "segment": 4,
    "shape": len(SHAPES),
    "first_color": len(COLORS),
    "last_color": len(COLORS),
}
NAMED_VALUES = {"place": 2, "travel": 2, "time": 1}


class ReadOut(nn.Module):
    """Norm and one linear layer, split by target name."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.norm = nn.RMSNorm(TEXT_WIDTH)
        self.out = nn.Linear(TEXT_WIDTH, sum(sizes.values()))

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """``[..., D]`` to one float32 tensor ``[..., size]`` per target."""
        parts = self.out(self.norm(hidden)).float().split(list(self.sizes.values()), -1)
        return dict(zip(self.sizes, parts, strict=True))


class AuxiliaryHeads(nn.Module):
    """Read-outs for video tokens and for naming tokens of questions."""

    def __init__(self) -> None:
        super().__init__()
        self.video = ReadOut(VIDEO_CLASSES | VIDEO_VALUES | VIDEO_FLAGS)
        self.named = ReadOut(NAMED_CLASSES | NAMED_VALUES)

    def video_losses(
        self, hidden: Tensor, want: dict[str, NDArray]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and accuracies on video tokens ``[B, T, 49, D]``."""
        out = self.video(hidden)
        to = {k: torch.from_numpy(v).to(hidden.device) for k, v in want.items()}
        losses, right = {}, {}
        for name in VIDEO_CLASSES:
            guess, label = out[name].flatten(0, 2), to[name].flatten()
            losses[name] = functional.cross_entropy(guess, label, ignore_index=IGNORE)
            known = label >= 0
            right[name] = (guess.detach().argmax(-1) == label)[known].float().mean()
        for name in VIDEO_FLAGS:
            losses[name] = functional.binary_cross_entropy_with_logits(out[name], to[name])
        losses["time"] = (out["time"] - to["time"]).abs().mean()
        moving = (to["motion"] >= 0)[..., None]
        error = (out["travel"] - to["travel"]).abs() * moving
        losses["travel"] = error.sum() / moving.sum().clamp(min=1)
        return losses, right

    def named_losses(
        self, hidden: Tensor, want: dict[str, NDArray]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and accuracies on naming tokens ``[M, D]``."""
        out = self.named(hidden)
        to = {k: torch.from_numpy(np.asarray(v)).to(hidden.device) for k, v in want.items()}
        losses, right = {}, {}
        for name in NAMED_CLASSES:
            losses[name] = functional.cross_entropy(out[name], to[name])
            right[name] = (out[name].detach().argmax(-1) == to[name]).float().mean()
        for name in NAMED_VALUES:
            losses[name] = (out[name] - to[name]).abs().mean()
        return losses, right
