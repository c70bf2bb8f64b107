"""One layer of FiCoCo-V as released, wrong indices included (kawhiiiileo/FiCoCo@8995e93)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from earlytom.ops.correlate import (
    favour,
    informative,
    sent_weights,
    strongest_targets,
    targets_per_token,
)
from earlytom.ops.grouping import blend, rows_at
from earlytom.ops.spatial import window_patches
from earlytom.ops.tensors import full_precision


class ScoreGrid:
    """The grid of scores that the release keeps over the layers of one video.

    Args:
        frames: frames of the video.
        grid: (height, width), both even; 24 x 24 in the release.
    """

    def __init__(self, frames: int, grid: tuple[int, int], device: torch.device) -> None:
        cells = grid[0] * grid[1]
        self._windows = window_patches(grid, (2, 2), device)
        self._scores = torch.zeros(frames, cells, device=device)
        self._used = torch.zeros(frames, cells, dtype=torch.bool, device=device)
        self._started = False

    def favoured(self, score: Tensor) -> Tensor:
        """Mark the smallest score of every 2 x 2 window ``[T, n]`` and use its cell up.

        Defect of the release: scores fill the cells not used up yet in sequence order, but a cell
        found marks the token whose *sequence* place has the number of that cell.
        """
        n = score.shape[1]
        cells = self._scores.shape[1]
        cell = torch.arange(cells, device=score.device)
        if not self._started:
            self._used |= cell >= n  # a smaller image: cells that no token ever had
            self._started = True
        rank = (~self._used).cumsum(1) - 1
        filled = ~self._used & (rank < n)
        values = score.gather(1, rank.clamp(0, n - 1))
        self._scores = torch.where(filled, values, self._scores)
        seen = self._scores.masked_fill(self._used, torch.inf)[:, self._windows]
        first = seen.argmin(2, keepdim=True)  # [T, w, 1]
        found = self._windows.expand_as(seen).gather(2, first)[..., 0]
        marked = torch.zeros_like(self._used).scatter(1, found, True)
        self._used |= marked
        return marked[:, :n]


@dataclass(frozen=True)
class Released:
    """What one layer did.

    Attributes:
        discarded: ``[T, r]`` tokens removed, by ascending score.
        remaining: ``[T, m]`` tokens left, by ascending score; the class token is last.
        targets: ``[T, r, c]`` tokens found as targets, numbered *before* the removal.
        into: ``[T, r, c]`` rows of ``remaining`` that got the content.
        hidden: ``[T, m, D]``.
        size: ``[T, m]`` float32, sum of weights of this layer alone.
    """

    discarded: Tensor
    remaining: Tensor
    targets: Tensor
    into: Tensor
    hidden: Tensor
    size: Tensor


def released_layer(
    x: Tensor, query: Tensor, key: Tensor, r: int, grid: ScoreGrid, beta: float, quantile: float
) -> Released:
    """Remove ``r`` tokens as the release does; it takes token 0 for the class token.

    Defects reproduced: the class token becomes the last one, yet the next layer looks for it at 0;
    targets may be removed tokens, and their numbers from before the removal are used (less ``r`` if
    too large) in the order after it, so the content goes to other tokens.

    Args:
        x: ``[T, n, D]``.
        query: ``[T, n, E]`` and ``key`` of :func:`earlytom.ops.correlate.joined_heads`.
        r: tokens to remove, below ``n``.
        grid: kept over the layers.
        beta: see :func:`earlytom.ops.correlate.informative`.
        quantile: see :func:`earlytom.ops.correlate.targets_per_token`.
    """
    n = x.shape[1]
    with full_precision(x.device):
        column = (key[:, 1:] @ query[:, :1].mT)[..., 0]
        row = (query[:, 1:] @ key[:, 1:].mean(1, keepdim=True).mT)[..., 0]
    score = informative(column, row, beta)
    score = favour(score, grid.favoured(score))
    score = torch.cat([torch.full_like(score[:, :1], torch.inf), score], dim=1)
    order = score.sort(dim=1, stable=True).indices
    discarded, remaining = order[:, :r], order[:, r:]
    rows = rows_at(query, discarded)
    targets, weight = strongest_targets(rows, key, targets_per_token(n, quantile))
    into = torch.where(targets >= n - r, targets - r, targets).clamp_min(0)
    kept = rows_at(x, remaining)
    ones = torch.ones(kept.shape[:2], device=x.device)
    hidden, size = blend(kept, ones, rows_at(x, discarded), sent_weights(into, weight, n - r))
    return Released(discarded, remaining, targets, into, hidden, size)
