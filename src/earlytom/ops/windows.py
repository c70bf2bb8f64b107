"""Windows of frames in which some places stand still (HoliTom, PruneVid)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from earlytom.ops.plan import Groups
from earlytom.ops.select import mask_index, top_of_video
from earlytom.ops.tensors import to_device


@dataclass(frozen=True)
class Windows:
    """Windows that partition a video, and the places that stand still in each (host data).

    Attributes:
        groups: inclusive ``(first, last)`` frames.
        static: ``[W, S]`` bool; a window of one frame has no static place.
    """

    groups: Groups
    static: np.ndarray

    @property
    def lengths(self) -> list[int]:
        """Frames of every window."""
        return [b - a + 1 for a, b in self.groups]

    @property
    def n_static(self) -> list[int]:
        """Static places of every window."""
        return [int(n) for n in self.static.sum(1)]

    @property
    def removed(self) -> int:
        """Tokens saved by keeping every static place once per window."""
        return sum(n * (w - 1) for n, w in zip(self.n_static, self.lengths, strict=True))

    def by_frame(self) -> np.ndarray:
        """Return ``[T, S]`` bool: whether a token is static."""
        return np.repeat(self.static, self.lengths, axis=0)

    def joined(self) -> np.ndarray:
        """Return ``[T, S]`` bool: whether a static token continues that of the frame before."""
        joined = self.by_frame()
        joined[[a for a, _ in self.groups]] = False
        return joined


def static_windows(still: np.ndarray, max_window: int) -> Windows:
    """Cut a video so that as many tokens as possible are saved (HoliTom's global segmentation).

    A window ``[s, e]`` saves ``(e - s)`` times the places that are still in all of its steps.
    Dynamic programme over the last frame; only a strictly larger total replaces an earlier choice,
    which is a single frame, then windows from the shortest.

    Args:
        still: ``[T - 1, S]`` bool, whether a place hardly changes from frame ``t`` to ``t + 1``.
        max_window: longest window in frames.
    """
    steps, size = still.shape
    best, start = [0], [0]
    run = np.zeros(size, dtype=np.int64)  # for every place the still steps that end here
    for end in range(1, steps + 1):
        run = (run + 1) * still[end - 1]
        at_least = np.bincount(run, minlength=end + 1)[::-1].cumsum()[::-1]
        choice, most = end, best[end - 1]
        for width in range(2, min(end + 1, max_window) + 1):
            first = end - width + 1
            before = best[first - 1] if first else 0
            total = before + int(at_least[width - 1]) * (width - 1)
            if total > most:
                choice, most = first, total
        best.append(most)
        start.append(choice)
    groups, last = [], steps
    while last >= 0:
        groups.append((start[last], last))
        last = start[last] - 1
    groups.reverse()
    static = [still[a:b].all(0) if b > a else np.zeros(size, dtype=bool) for a, b in groups]
    return Windows(tuple(groups), np.stack(static))


def window_sums(x: Tensor, groups: Groups) -> Tensor:
    """Return ``[W, S, D]`` float32: the frames ``x [T, S, D]`` summed per window."""
    owner = to_device([w for w, (a, b) in enumerate(groups) for _ in range(a, b + 1)], x.device)
    total = torch.zeros(len(groups), *x.shape[1:], device=x.device)
    return total.index_add_(0, owner, x.float())


def merge_runs(
    x: Tensor, joined: np.ndarray, similarity: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Average every static place over time, in as many runs as give ``count`` tokens.

    A run ends where ``joined`` does; runs are split further at the least similar steps until
    exactly ``count`` tokens are left.

    Args:
        x: ``[T, S, D]``.
        joined: see :meth:`Windows.joined`.
        similarity: ``[T - 1, S]`` of a token and its successor.
        count: at least the number of tokens that are not joined, at most ``T * S``.

    Returns:
        ``[count]`` ascending index of the first member of every run, ``[count, D]`` means in the
        dtype of ``x`` and ``[count]`` float32 number of members.
    """
    n, size, dim = x.shape
    mark = to_device(joined, x.device, torch.bool)
    splits = count - (n * size - int(joined.sum()))
    if splits:
        score = torch.where(mark[1:], -similarity, -torch.inf)
        mark[1:] &= ~top_of_video(score, splits)
    frame = torch.arange(n, device=x.device)[:, None].masked_fill(mark, 0).cummax(0).values
    owner = (frame * size + torch.arange(size, device=x.device)).flatten()
    index = mask_index(~mark, count)
    total = torch.zeros(n * size, dim, device=x.device)
    total.index_add_(0, owner, x.float().flatten(0, 1))
    weight = torch.zeros(n * size, device=x.device)
    weight.index_add_(0, owner, torch.ones_like(weight))
    weight = weight.index_select(0, index)
    return index, (total.index_select(0, index) / weight[:, None]).to(x.dtype), weight


def share_out(total: int, sizes: Sequence[int]) -> list[int]:
    """Split ``total`` in proportion to ``sizes``: every share is rounded down or up, none lost.

    No share is larger than its size if ``total`` is at most their sum.
    """
    whole = max(1, sum(sizes))
    ends = [total * end // whole for end in accumulate(sizes)]
    return [b - a for a, b in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
