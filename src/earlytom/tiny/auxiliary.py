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

from earlytom.tiny.architecture import TEXT_WIDTH, Architecture
from earlytom.tiny.packing import IGNORE
from earlytom.tiny.readout import ReadOut
from earlytom.tiny.world import CELLS, COLORS, GRID, SHAPES

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
# where a token is, and where the object is that it shows: for models whose tower cannot know
PLACE_VALUES = {"cell": 2, "place": 2}
NAMED_CLASSES = {
    "segment": 4,
    "shape": len(SHAPES),
    "first_color": len(COLORS),
    "last_color": len(COLORS),
}
NAMED_VALUES = {"place": 2, "travel": 2, "time": 1}


class AuxiliaryHeads(nn.Module):
    """Read-outs for video tokens and for naming tokens of questions."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.places = arch.places_given
        sizes = VIDEO_CLASSES | VIDEO_VALUES | VIDEO_FLAGS
        sizes |= PLACE_VALUES if self.places else {}
        self.video = ReadOut(sizes, nn.RMSNorm(TEXT_WIDTH), arch.step_frames)
        self.named = ReadOut(NAMED_CLASSES | NAMED_VALUES, nn.RMSNorm(TEXT_WIDTH))

    def video_losses(
        self, hidden: Tensor, want: dict[str, NDArray]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and accuracies on video tokens ``[B, steps, 49, D]``."""
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
        losses["travel"] = _mean_where(moving, out["travel"] - to["travel"])
        if self.places:
            covered = (to["shape"] > 0)[..., None]
            losses["place"] = _mean_where(covered, out["place"] - to["place"])
            losses["cell"] = (out["cell"] - _cells().to(hidden.device)).abs().mean()
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


def _mean_where(mask: Tensor, error: Tensor) -> Tensor:
    """Mean absolute error where ``mask [..., 1]`` holds."""
    return (error.abs() * mask).sum() / mask.sum().clamp(min=1)


def _cells() -> Tensor:
    """Column and row ``[49, 2]`` of every cell, in units of two cells around the middle."""
    cells = torch.arange(CELLS)
    grid = torch.stack([cells % GRID, cells // GRID], 1).float()
    return (grid - (GRID - 1) / 2) / 2
